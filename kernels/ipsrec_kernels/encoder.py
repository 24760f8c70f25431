"""A whole encoder: histories that lie end to end become user embeddings, without padding.

Users are taken in order, a group at a time, so that the states of a group stay in the second-level cache. What a user
gets depends on the user alone: every product is a chain in a fixed order, and attention stays inside the user.

Which layers a model has, and what looks at what, is a short program: a row for each step.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from ipsrec_kernels.encoder_arrays import SLACK_ROWS, make_buffers
from ipsrec_kernels.row_kernels import add_norm
from ipsrec_kernels.transformer import look_back, look_from_newest

GROUP_TOKENS: Final = 192  # tokens of a group; one user may have more

# What a step does. States have numbered slots, for all tokens and for the newest item token of each user.
LOOK_BACK: Final = 0  # slot `out` of all tokens = a layer for all tokens
TAKE_NEWEST: Final = 1  # slot `out` of the newest tokens = those of slot `looked_at` of all tokens
LOOK_FROM_NEWEST: Final = 2  # slot `out` of the newest tokens = a layer for these; `looked_at` is of all tokens

# Columns of a program.
OPERATION, LAYER, QUERY_LAYER, ASKING, LOOKED_AT, RESIDUAL, OUT, NUM_COLUMNS = range(8)


@njit(cache=True, nogil=True)
def encode_histories(
    items, providers, offsets, item_input, provider_input, step, layers, program, num_slots, norm, user_embedding
):
    """Compute the user embedding of each history.

    Args:
        items: (N,) int32 item_index.
        providers: (N,) int32 provider_index; not looked at where provider_input.place is empty.
        offsets: (users + 1,) int64 into them, every user 1..max_len items.
        item_input: StreamInput, of slot 0.
        provider_input: StreamInput, of slot 1, or of every other token of slot 0 where step is 2.
        step: tokens of one moment in slot 0.
        layers: Layers.
        program: (steps, NUM_COLUMNS) int64; the last step's `out` is the user.
        num_slots: slots that the program writes or reads.
        norm: Norm.
        user_embedding: (users, dim) float32, written.
    """
    users, longest = _largest_group(offsets, step)
    rows = max(GROUP_TOKENS, longest)
    buffers = make_buffers(layers, rows, users, longest)
    states = np.zeros((num_slots, rows + SLACK_ROWS, layers.output_bias.shape[1]), np.float32)
    newest = np.zeros((num_slots, users + SLACK_ROWS, states.shape[2]), np.float32)
    zeros = np.zeros((rows + SLACK_ROWS, states.shape[2]), np.float32)
    first = 0
    while first < len(offsets) - 1:
        stop = _end_of_group(offsets, first, step)
        starts = (offsets[first : stop + 1] - offsets[first]) * step
        for user in range(stop - first):
            start, end = offsets[first + user], offsets[first + user + 1]
            _embed(items, start, end, item_input, states[0], starts[user], step)
            if len(provider_input.place):
                _embed(providers, start, end, provider_input, states[2 - step], starts[user] + step - 1, step)
        # LayerNorm of the embeddings; IPSRec-S has one for both streams.
        add_norm(states[0], zeros, item_input.scale, item_input.shift, 0, starts[-1], norm, states[0])
        if len(provider_input.place) and step == 1:
            add_norm(states[1], zeros, provider_input.scale, provider_input.shift, 0, starts[-1], norm, states[1])
        for number in range(len(program)):
            operation, out = program[number, OPERATION], program[number, OUT]
            layer, query_layer = program[number, LAYER], program[number, QUERY_LAYER]
            asking, residual = program[number, ASKING], program[number, RESIDUAL]
            looked_at = states[program[number, LOOKED_AT]]
            if operation == LOOK_BACK:
                look_back(
                    layers,
                    layer,
                    query_layer,
                    states[asking],
                    looked_at,
                    states[residual],
                    starts,
                    step,
                    norm,
                    buffers,
                    states[out],
                )
            elif operation == TAKE_NEWEST:
                for user in range(stop - first):
                    for d in range(states.shape[2]):
                        newest[out, user, d] = looked_at[starts[user + 1] - step, d]
            else:
                look_from_newest(
                    layers,
                    layer,
                    query_layer,
                    newest[asking],
                    looked_at,
                    newest[residual],
                    starts,
                    norm,
                    buffers,
                    newest[out],
                )
        result = program[len(program) - 1, OUT]
        for user in range(first, stop):
            for d in range(user_embedding.shape[1]):
                user_embedding[user, d] = newest[result, user - first, d]
        first = stop


@njit(cache=True, nogil=True)
def _embed(entries, start, stop, stream, states, row, step):
    """Embedding and place of entries start..stop - 1, into every step-th row from `row` on."""
    for position in range(stop - start):
        embedding, place = stream.table[entries[start + position]], stream.place[position]
        state = states[row + position * step]
        for d in range(len(place)):
            state[d] = embedding[d] + place[d]


@njit(cache=True, nogil=True)
def _end_of_group(offsets, first, step):
    """The user behind the group that starts with `first`: as many whole users as fit, one at least."""
    stop = first + 1
    while stop < len(offsets) - 1 and (offsets[stop + 1] - offsets[first]) * step <= GROUP_TOKENS:
        stop += 1
    return stop


@njit(cache=True, nogil=True)
def _largest_group(offsets, step):
    """Most users of a group, and most tokens of a user."""
    users, longest, first = 0, 1, 0
    while first < len(offsets) - 1:
        stop = _end_of_group(offsets, first, step)
        users = max(users, stop - first)
        for user in range(first, stop):
            longest = max(longest, (offsets[user + 1] - offsets[user]) * step)
        first = stop
    return users, longest
