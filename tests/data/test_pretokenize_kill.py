"""A pretokenizing process that is killed -9 at random moments and started again writes the same bytes."""

from bench.pretokenize import killed, photographs


def test_kills_at_random_moments_change_no_byte(tmp_path):
    result = killed(photographs(tmp_path, records=40, edge=200), tmp_path / "out", kills=2)
    assert result["same_bytes"], result
