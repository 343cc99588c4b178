"""How many rows the partitions of a batch send without being asked."""

import pytest

from sparkml_sgdals.ingest.collecting import _FAR_LOOK, COLLECT_LIMIT, _caps


@pytest.mark.parametrize("expected", [0, 500, 600_000])
@pytest.mark.parametrize("partitions", [0, 1, 40, 200, 1000])
@pytest.mark.parametrize("gathered", [0, 4, 8, 64, 1000])
def test_what_is_sent_unasked_is_bounded(expected: int, partitions: int, gathered: int) -> None:
    """As a whole: also where many more partitions come than before, as after an outage."""
    caps = _caps(expected, partitions, gathered)
    assert [last for last, _ in caps] == sorted({last for last, _ in caps})
    of_each = [next((cap for last, cap in caps if n < last), _FAR_LOOK) for n in range(1000)]
    assert sum(of_each) <= 4 * COLLECT_LIMIT
    if expected == 500:
        assert min(of_each[:partitions], default=1000) >= 1000


@pytest.mark.parametrize("partitions", [1, 2, 3, 4, 8, 50])
def test_a_table_of_some_size_is_sent_unasked(partitions: int) -> None:
    """In one job, where its rows are spread evenly."""
    caps = _caps(0, 0)
    rows = -(-100_000 // partitions)
    assert all(next(cap for last, cap in caps if n < last) >= rows for n in range(partitions))


@pytest.mark.parametrize("gathered", [4, 8, 64])
def test_a_table_of_many_small_partitions_is_sent_unasked(gathered: int) -> None:
    """In one job, once they are gathered."""
    caps = _caps(0, 0, gathered)
    rows = COLLECT_LIMIT // gathered
    assert all(next(cap for last, cap in caps if n < last) >= rows for n in range(gathered))
