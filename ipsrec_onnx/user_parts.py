"""Cuts the users of a job into parts, and parts into batches, by numbers of rows alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from ipsrec_onnx.users import Users

# Users of a part, where nothing else is asked for: what is lost of a job that is killed, at most, some seconds of work.
PART_ROWS = 1 << 16
# Of a job that has not so many parts, parts are smaller: at its end a cluster's workers wait for the last one.
_PARTS: Final = 64
_LEAST_PART_ROWS: Final = 1 << 13  # a row group of the output
# Of a batch: an error, or a worker that dies again and again, is heard of when the batches before it are done.
_MOST_PARTS: Final = 16


class UserPart(NamedTuple):
    """Rows of one file that are written together.

    Attributes:
        file: number of the file in Users.files.
        first_row: in the file, from 0.
        num_rows: of the part; as many as plan_parts was asked for, or fewer at the file's end.
        partition: of the file, as in UsersFile.
    """

    file: int
    first_row: int
    num_rows: int
    partition: str = ""


def users_of_a_part(users: Users, part_rows: int | None) -> int:
    """What was asked for, or PART_ROWS; of a job that has not 64 such parts a 64th, in whole row groups."""
    if part_rows is not None:
        return part_rows
    groups = -(-users.num_rows // (_PARTS * _LEAST_PART_ROWS))
    return min(PART_ROWS, max(1, groups) * _LEAST_PART_ROWS)


def plan_parts(users: Users, part_rows: int | None = None) -> list[UserPart]:
    """Cut users files into parts, by the numbers of their rows alone; one empty part where there is no user at all.

    Args:
        users: as open_users gave it.
        part_rows: users of a part at most; None for what users_of_a_part says.
    """
    most = users_of_a_part(users, part_rows)
    parts = [
        UserPart(number, first_row, min(most, file.num_rows - first_row), file.partition)
        for number, file in enumerate(users.files)
        for first_row in range(0, file.num_rows, most)
    ]
    return parts or [UserPart(0, 0, 0, users.files[0].partition)]


def cut_into_batches(num_parts: int, workers: int) -> Iterator[range]:
    """Cut parts, in their order, into batches that a worker scores as one stream.

    The first ones are large, for a worker's threads wait at the end of each, and the last ones are single parts, for
    workers wait for each other at the end of the job. Each has half of what is left, shared out to the workers: guided
    self-scheduling (Polychronopoulos and Kuck, IEEE Transactions on Computers C-36, 1987), whose batches are twice as
    large.

    Args:
        num_parts: of a job.
        workers: that take the next batch when they are done with one; 1 or more.

    Yields:
        Places of a batch's parts in the order of all parts.
    """
    first = 0
    while left := num_parts - first:
        size = min(_MOST_PARTS, left if workers == 1 else -(-left // (2 * workers)))
        yield range(first, first + size)
        first += size
