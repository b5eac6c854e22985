"""What somebody meant who mistyped a name."""

from __future__ import annotations

from rllib_haml.nearest import did_you_mean, nearest


def test_the_most_alike_is_named_and_nothing_that_is_not_alike() -> None:
    options = ("climbing", "penalty", "climb")
    assert nearest("climbin", options) == "climbing"
    assert nearest("climbi", iter(options)) == "climb"
    assert nearest(3, ["3m", "8m"]) == "3m"
    assert nearest("xyz", options) is None
    assert did_you_mean("climbin", options) == "Did you mean 'climbing'? "
    assert did_you_mean("xyz", options) == did_you_mean("x", []) == ""
