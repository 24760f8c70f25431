"""A slow, obvious twin of each kernel."""

from __future__ import annotations

import itertools
import math

import numpy as np


def find_ids(table_ids, ids):
    index = {one: row + 1 for row, one in enumerate(table_ids)}
    return np.array([index.get(one, 0) for one in ids], np.int32)


def string_arrays(strings, *, before=b"", after=b""):
    """Data and offsets as Arrow has them; `before` makes the first offset larger than 0, as in a sliced array."""
    encoded = [one.encode() for one in strings]
    offsets = np.cumsum([len(before)] + [len(one) for one in encoded]).astype(np.int64)
    return np.frombuffer(before + b"".join(encoded) + after, np.uint8), offsets


def ragged(lists):
    """Lists -> int32 values, int64 offsets."""
    offsets = np.cumsum([0] + [len(one) for one in lists]).astype(np.int64)
    return np.array([value for one in lists for value in one], np.int32), offsets


def unragged(values, offsets):
    return [values[start:stop].tolist() for start, stop in itertools.pairwise(offsets)]


def pack_histories(histories, rows, *, bucket_len, batch_size):
    item_history = np.zeros((batch_size, bucket_len), np.int32)
    lengths = np.zeros(batch_size, np.int32)
    for b, row in enumerate(rows):
        newest = histories[row][-bucket_len:]
        item_history[b, : len(newest)] = newest
        lengths[b] = len(newest)
    return item_history, lengths


def drop_unknown(items, providers):
    kept = [[at for at, item in enumerate(one) if item != 0] for one in items]
    return (
        [[one[at] for at in places] for one, places in zip(items, kept, strict=True)],
        [[one[at] for at in places] for one, places in zip(providers, kept, strict=True)],
    )


def map_histories(item_lists, provider_lists, item_ids, provider_ids):
    """Lists of ids -> lists of item_index and provider_index, positions of unknown items, number of lost providers."""
    items = [find_ids(item_ids, one).tolist() for one in item_lists]
    providers = [find_ids(provider_ids, one).tolist() for one in provider_lists]
    unknown = [at for at, item in enumerate(itertools.chain(*items)) if item == 0]
    known_items, known_providers = drop_unknown(items, providers)
    return known_items, known_providers, unknown, list(itertools.chain(*known_providers)).count(0)


def pack_end_to_end(histories, *, width):
    """First-fit decreasing: row and column of each history, number of rows."""
    used = []
    places = {}
    for h in sorted(range(len(histories)), key=lambda h: (-len(histories[h]), h)):
        size = len(histories[h])
        row = next((r for r, filled in enumerate(used) if filled + size <= width), len(used))
        if row == len(used):
            used.append(0)
        places[h] = (row, used[row])
        used[row] += size
    return [places[h][0] for h in range(len(histories))], [places[h][1] for h in range(len(histories))], len(used)


def weighed_providers(providers, weights, num_providers):
    """Provider -> what a history (oldest first) adds to its items."""
    totals = {}
    for age, provider in reversed(list(enumerate(reversed(providers)))):
        if 0 < provider <= num_providers:
            totals[provider] = totals.get(provider, 0.0) + weights[age]
    return totals


def full_scores(item_embeddings, item_provider, user, history=(), providers=(), provider_terms=(), item_terms=()):
    """Score of each item for one user: float64 in the documented order, rounded once to float32."""
    num_rows, dim = item_embeddings.shape
    lanes = np.zeros((num_rows, 8))
    for d in range(dim):
        lanes[:, d % 8] += item_embeddings[:, d].astype(np.float64) * np.float64(user[d])
    dot = lanes[:, 0]
    for lane in range(1, 8):
        dot = dot + lanes[:, lane]
    from_providers, from_items = np.zeros(num_rows), np.zeros(num_rows)
    for s, (item, provider) in enumerate(zip(history, providers, strict=True)):
        age = len(history) - 1 - s
        from_providers += np.where((item_provider == provider) & (provider != 0), provider_terms[age], 0.0)
        from_items += np.where(np.arange(num_rows) == item, item_terms[age], 0.0)
    with np.errstate(over="ignore"):
        return ((dot + from_providers) + from_items).astype(np.float32)


def best_items(scores, item_provider, *, top_k, allowed=None, seen=(), candidates=None, max_per_provider=None):
    """Walk down the whole ranking of one user: (item_index, score), best first."""
    ranking = sorted(range(1, len(scores)), key=lambda item: (-scores[item], item))
    taken = {}
    best = []
    for item in ranking:
        provider = item_provider[item]
        full = max_per_provider is not None and provider != 0 and taken.get(provider, 0) >= max_per_provider
        wanted = (allowed is None or allowed[item]) and (candidates is None or item in candidates)
        if wanted and item not in seen and not full and len(best) < top_k:
            best.append((item, scores[item]))
            taken[provider] = taken.get(provider, 0) + 1
    return best


def merge_lists(one, other, item_provider, *, top_k, max_per_provider=None):
    """Two lists of (item_index, score) -> the list of both."""
    scores = np.full(len(item_provider), -math.inf, np.float32)
    for item, score in (*one, *other):
        scores[item] = score
    return best_items(
        scores,
        item_provider,
        top_k=top_k,
        candidates=[item for item, _ in (*one, *other)],
        max_per_provider=max_per_provider,
    )


def full_row(scores, columns, history, weights):
    """A row of plain scores with bias and history terms, in float64; history is item_index, oldest first."""
    row = [float(score) for score in scores]
    for item in range(1, len(columns.of_item)):
        column = int(columns.of_item[item])
        if column < 0:
            continue
        if len(columns.bias):
            row[column] += float(columns.bias[column])
        row[column] += term(item, columns, history, weights)
    return row


def term(item, columns, history, weights):
    """What the history terms add to one item's score."""
    total = 0.0
    for age, taken in enumerate(reversed(history)):
        if len(weights.provider) and columns.item_provider[item] > 0:
            total += float(weights.provider[age]) * (columns.item_provider[taken] == columns.item_provider[item])
        if len(weights.item):
            total += float(weights.item[age]) * (taken == item)
    return total


def softmax_gradients(scores, target_scores, targets, *, columns, histories, weights):
    """Cross entropy and its gradients, row by row in float64: loss, scores, target scores, a, b."""
    loss, d_scores, d_targets = 0.0, np.zeros(scores.shape), np.zeros(len(scores))
    d_a, d_b = np.zeros(len(weights.provider)), np.zeros(len(weights.item))
    for c, target in enumerate(targets.tolist()):
        history = histories[c] if len(weights.provider) else []
        row = full_row(scores[c], columns, history, weights)
        own = float(target_scores[c]) + term(target, columns, history, weights)
        others = [i for i in range(len(row)) if i != columns.of_item[target]]
        top = max([own, *(row[i] for i in others)])
        total = math.exp(own - top) + sum(math.exp(row[i] - top) for i in others)
        loss += math.log(total) + top - own
        d_targets[c] = math.exp(own - top) / total - 1
        for i in others:
            d_scores[c, i] = math.exp(row[i] - top) / total
        for age, taken in enumerate(reversed(history)):
            for item in range(1, len(columns.of_item)):
                column = columns.of_item[item]
                slope = d_targets[c] if item == target else d_scores[c, column] if column >= 0 else 0.0
                same = columns.item_provider[item] > 0 and columns.item_provider[item] == columns.item_provider[taken]
                d_a[age] += slope * same
                d_b[age] += slope * (item == taken)
    return loss, d_scores, d_targets, d_a, d_b


def target_rank(scores, target, *, columns, history, weights):
    """1 + how many columns are better; of equal ones the smaller column is."""
    row = full_row(scores, columns, history, weights)
    at = int(columns.of_item[target])
    return 1 + sum(score > row[at] or (score == row[at] and i < at) for i, score in enumerate(row))


def best_left_out(item_embeddings, allowed, user, proposed):
    """The largest inner product, in float64, of an allowed item that is not proposed; -inf where there is none."""
    left_out = [item for item in np.flatnonzero(allowed) if item != 0 and item not in set(proposed)]
    products = [float(item_embeddings[item].astype(np.float64) @ user.astype(np.float64)) for item in left_out]
    return max(products, default=-math.inf)


def half_logits(items, users):
    """Items times users scaled to (1, 2], the same in float16 as a search scans them, and the norms of these users."""
    products, logits, norms = [], [], []
    for user in users.astype(np.float64):
        largest = np.abs(user).max()
        exponent = 126 if largest == 0 else min(126, max(-126, -(math.frexp(np.nextafter(largest, 0))[1] - 1)))
        scaled = user * 2.0**exponent
        products.append(items.astype(np.float64) @ scaled)
        rounded = items.astype(np.float16).astype(np.float64) @ scaled.astype(np.float16).astype(np.float64)
        logits.append(rounded.astype(np.float16).astype(np.float64))
        norms.append(np.linalg.norm(scaled))
    return np.array(products), np.array(logits), np.array(norms)


MASK = 2**64 - 1


def _mix_word(state, word):
    x = ((state ^ word) + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def _mix_string(x):
    x = (x * 0x9E3779B97F4A7C15) & MASK
    x ^= x >> 32
    return (x * 0xD6E8FEB86659FD93) & MASK


def id_word(one):
    """An int64 is its own word, a string is hashed eight bytes at a time, the last eight (or fewer) at the end."""
    if not isinstance(one, str):
        return one & MASK
    data = one.encode()
    state = _mix_string((len(data) + 1) & MASK)
    at = 0
    while at < len(data) - 8:
        state = _mix_string(state ^ int.from_bytes(data[at : at + 8], "little"))
        state ^= state >> 32
        at += 8
    return _mix_string(state ^ int.from_bytes(data[-8:], "little"))


def history_fingerprint(lists):
    """Lists of one user, column by column."""
    state = 1
    for one in lists:
        state = _mix_word(state, len(one))
        for value in one:
            state = _mix_word(state, id_word(value))
    return state


def user_fingerprint(user_id):
    return _mix_word(1, id_word(user_id))


def quantize(weight: np.ndarray, inputs: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A weight in -127..127 and one float16 scale a channel, element by element; inputs are the axes of a sum."""
    shape = [1 if axis in inputs else size for axis, size in enumerate(weight.shape)]
    scales, values = np.zeros(shape, np.float16), np.zeros(weight.shape, np.int8)
    for channel in np.ndindex(*shape):
        of_channel = tuple(slice(None) if axis in inputs else place for axis, place in enumerate(channel))
        largest = max(abs(value) for value in weight[of_channel].ravel())
        scales[channel] = np.float16(np.float32(largest) / np.float32(127))
    for place in np.ndindex(*weight.shape):
        scale = np.float32(scales[tuple(0 if axis in inputs else at for axis, at in enumerate(place))])
        if scale > 0:
            values[place] = min(127, max(-127, round(float(weight[place] / scale))))
    return values, scales


def round_for_products(steps: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Whole numbers -127..127 for (n, D), row by row, the columns of the largest moment first.

    After each column those that are left take the values that keep v . row as near as can be, over vectors v of this
    second moment: a least squares problem, solved anew.
    """
    order = sorted(range(len(moment)), key=lambda column: -moment[column, column])
    rounded = np.zeros(steps.shape, np.int8)
    for row in range(len(steps)):
        left = steps[row].astype(np.float64)
        for place, column in enumerate(order):
            whole = min(127, max(-127, round(left[column])))
            rest = order[place + 1 :]
            if rest:
                lost = left[column] - whole
                left[rest] += np.linalg.solve(moment[np.ix_(rest, rest)], moment[rest, column] * lost)
            rounded[row, column] = whole
    return rounded
