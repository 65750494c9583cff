import pytest

from fastntk_sk.exceptions import AmbiguousSampleError, UnknownSampleError
from fastntk_sk.store.ledger import Ledger


def learned(*rows, ids=None):
    """A ledger of (content, label, weight) rows."""
    ledger = Ledger()
    contents, labels, weights = zip(*rows, strict=True)
    return ledger.added(map(ledger.digest, contents), labels, weights, ids)


def removals(ledger, contents, **wanted):
    """Match a request whose rows are all there."""
    match = ledger.find(contents, **wanted)
    match.check()
    return match.removals


def test_a_forgotten_row_leaves_no_digest_behind():
    ledger = learned((b"a", 0, 1.0), (b"b", 1, 1.0))
    digest = ledger.digest(b"a")
    ledger = ledger.removed(removals(ledger, [b"a"]))
    assert digest not in ledger.segments[0].rows
    assert ledger.n_rows == 1
    with pytest.raises(UnknownSampleError):
        removals(ledger, [b"a"])


def test_unknown_rows_are_named_and_nothing_is_matched():
    ledger = learned((b"a", 0, 1.0), (b"b", 1, 1.0))
    for contents, wanted, indices in (
        ([b"a", b"x", b"b", b"y"], {}, [1, 3]),
        ([b"a", b"x", b"b", b"y"], {"copies": "all"}, [1, 3]),
        ([b"a", b"b"], {"labels": [1, 1]}, [0]),
        ([b"b", b"a", b"a"], {}, [2]),
    ):
        with pytest.raises(UnknownSampleError) as caught:
            removals(ledger, contents, **wanted)
        assert caught.value.indices == indices


def test_what_becomes_of_each_row():
    ledger = learned((b"a", 0, 1.0), (b"b", 0, 1.0), (b"b", 1, 1.0), (b"c", 0, 1.0), (b"c", 0, 1.0))
    match = ledger.find([b"x", b"a", b"b", b"c"])
    assert match.results == ["unknown", "found", "ambiguous", "found"]
    assert ledger.removed(match.removals).n_copies(match.found) == 1
    with pytest.raises(AmbiguousSampleError):
        match.check("skip")
    ledger.find([b"x", b"a"]).check("skip")
    with pytest.raises(UnknownSampleError):  # nothing would be left of the request
        ledger.find([b"x"]).check("skip")
    assert ledger.find([b"a"], labels=[1]).results == ["elsewhere"]


def test_duplicates_count_as_often_as_they_were_learned():
    ledger = learned((b"a", 0, 1.0), (b"a", 0, 1.0), (b"b", 0, 1.0))
    assert len(removals(ledger, [b"a"])) == 1
    assert len(removals(ledger, [b"a", b"a"])) == 2
    assert len(removals(ledger, [b"a"], copies="all")) == 2
    assert len(removals(ledger, [b"a", b"a"], copies="all")) == 2


@pytest.mark.parametrize("rows", [((b"a", 0, 1.0), (b"a", 1, 1.0)), ((b"a", 0, 1.0), (b"a", 0, 2.0))])
def test_the_same_content_learned_differently_is_ambiguous(rows):
    ledger = learned(*rows, (b"b", 0, 1.0))
    with pytest.raises(AmbiguousSampleError, match="copies='all'") as caught:
        removals(ledger, [b"b", b"a"])
    assert caught.value.indices == [1]
    assert len(removals(ledger, [b"a"], copies="all")) == 2
    assert len(removals(ledger, [b"a", b"a"])) == 2  # asking for both leaves nothing to choose
    if rows[0][1] != rows[1][1]:
        assert removals(ledger, [b"a"], labels=[1])[0].entry.label == 1


def test_names_that_may_mean_a_number():
    ledger = learned((b"a", 0, 1.0), (b"b", 0, 1.0), (b"c", 0, 1.0), ids=[7, "07", "x"])
    names = ["7", "07", "007", "\u0667", "8", 7]
    assert ledger.known_ids(names) == [[7], ["07"], [], [], [], [7]]


def test_sample_ids_pick_the_owner():
    ledger = learned((b"a", 0, 1.0), (b"a", 0, 1.0), (b"b", 1, 1.0), ids=["ann", "bob", "ann"])
    with pytest.raises(AmbiguousSampleError, match="sample_ids"):
        removals(ledger, [b"a"])
    assert ledger.owned_rows(["ann"]) == 2
    ledger = ledger.removed(removals(ledger, [b"a"], sample_ids=["ann"]))
    assert (ledger.owned_rows(["ann"]), ledger.owned_rows(["bob"])) == (1, 1)
    with pytest.raises(UnknownSampleError, match="sample id"):
        removals(ledger, [b"a"], sample_ids=["ann"])


def test_an_unnamed_row_takes_nobodys_copy_by_chance():
    """Named rows of a request are matched first, and a choice between owners is not made."""
    ledger = learned((b"a", 0, 1.0), (b"a", 0, 1.0), (b"b", 1, 1.0), ids=["ann", None, "bob"])
    with pytest.raises(AmbiguousSampleError, match="sample_ids") as caught:
        removals(ledger, [b"b", b"a"], sample_ids=["bob", None])
    assert caught.value.indices == [1]
    found = removals(ledger, [b"a", b"b", b"a"], sample_ids=[None, "bob", "ann"])
    assert [removal.row for removal in found] == [0, 1, 2]
    owner = ledger.segments[0].owner
    assert [removal.entry.owner for removal in found] == [b"", owner("bob"), owner("ann")]
    assert ledger.owned_rows(["bob", None]) == 1


def test_two_sites_keep_their_keys_and_may_have_learned_the_same_person():
    first, second = (
        learned((b"a", 0, 1.0), (b"b", 1, 1.0), ids=["ann", name]) for name in ("bob", "eve")
    )
    assert first.digest(b"a") != second.digest(b"a")  # digests of two models cannot be compared
    both = Ledger(first.segments + second.segments)
    assert len(removals(both, [b"a"], sample_ids=["ann"])) == 1
    found = removals(both, [b"a"], sample_ids=["ann"], copies="all")
    assert [removal.segment for removal in found] == [0, 1]
    assert (both.n_rows, both.removed(found).n_rows) == (4, 2)
