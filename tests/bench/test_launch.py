"""The rows of ``python -m bench launch`` that need no fresh interpreter."""

from bench import launch


def test_rows_have_the_columns_of_every_bench():
    bare, call = launch.bare(), launch.call()
    for row in (bare, call):
        assert list(row) == ["work", "ours_ms", "rival", "rival_ms", "ratio", "limit_fraction"]
        assert row["ours_ms"] > 0
    assert bare["rival"] is None and 0 < bare["limit_fraction"] < 1
    assert call["rival"] == "torch" and call["ratio"] == call["rival_ms"] / call["ours_ms"]


def test_the_idle_launcher_is_put_back():
    launch.bare()
    import torch

    x, o = torch.ones(64), torch.zeros(64)
    launch.add[(1,)](x, x, o, 64, 64)
    assert o.eq(2).all()
