"""Which patch is most like which, and what is pasted: everything by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from waifu4x.references.matching import Matches, cells_of, find_matches, paste, similarity_map

torch.set_num_threads(1)


def noise(*shape: int, seed: int) -> Tensor:
    # Whole numbers, whose products are exact in any order.
    drawn = torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed))
    return drawn.float()


def matches_of(start: list[list[int]], row_length: int) -> Matches:
    places = torch.tensor(start, dtype=torch.int32)
    return Matches(start=places, similarity=torch.ones(places.shape), sizes=((3, row_length),))


def cells(*features: Tensor, ratio: int = 1) -> Tensor:
    return torch.cat([cells_of(each, ratio).flatten(0, 1) for each in features])


def test_a_planted_patch_is_found_however_bright_it_is() -> None:
    query = noise(5, 9, 11, seed=0)
    references = [noise(5, 8, 10, seed=1), noise(5, 12, 7, seed=2)]
    references[1][:, 4:7, 2:5] = 3.0 * query[:, 3:6, 5:8]
    found = find_matches(query, references)
    assert found.start.shape == (7, 9)
    # Behind the 8 x 10 positions of the first reference, in row 4, column 2 of the second.
    assert int(found.start[3, 5]) == 80 + 4 * 7 + 2
    assert int(found.row_lengths()[3, 5]) == 7
    assert float(found.similarity[3, 5]) == pytest.approx(1.0)


def test_similarity_is_a_cosine() -> None:
    # A single patch each: (1, 1) beside (1, 0), all else 0.
    query, reference = torch.zeros(2, 3, 3), torch.zeros(2, 3, 3)
    query[:, 0, 0] = 1.0
    reference[0, 0, 0] = 5.0
    found = find_matches(query, [reference])
    assert float(found.similarity) == pytest.approx(2**-0.5)
    # Where there is nothing there is nothing to compare, but no NaN either.
    assert float(find_matches(torch.zeros(2, 3, 3), [reference]).similarity) == 0.0


def test_of_equal_ones_the_first_is_taken() -> None:
    patch = noise(3, 3, 3, seed=3)
    reference = torch.cat([noise(3, 3, 2, seed=4), patch, patch], 2)
    found = find_matches(patch, [reference, patch])
    assert (int(found.start), int(found.row_lengths())) == (2, 8)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (20, 9), (10_000, 7), (13, 10_000)])
def test_blocks_of_any_size_find_the_same(queries: int, keys: int) -> None:
    query = noise(4, 7, 9, seed=5)
    references = [noise(4, 6, 11, seed=6), noise(4, 9, 5, seed=7)]
    whole = find_matches(query, references)
    # By comparing all with all, one by one.
    for y, x in ((0, 0), (4, 6), (2, 3)):
        patch = query[:, y : y + 3, x : x + 3].flatten()
        best = max(
            float(torch.cosine_similarity(patch, r[:, v : v + 3, u : u + 3].flatten(), dim=0))
            for r in references
            for v in range(r.shape[1] - 2)
            for u in range(r.shape[2] - 2)
        )
        assert float(whole.similarity[y, x]) == pytest.approx(best, abs=1e-6)
    cut = find_matches(query, references, queries_at_once=queries, keys_at_once=keys)
    assert torch.equal(cut.start, whole.start)
    assert torch.equal(cut.row_lengths(), whole.row_lengths())


def test_a_picture_is_put_together_from_itself() -> None:
    coarse, fine = noise(4, 9, 8, seed=8), noise(3, 36, 32, seed=9)
    found = find_matches(coarse, [coarse])
    torch.testing.assert_close(paste(cells(coarse), found), coarse)
    torch.testing.assert_close(paste(cells(fine, ratio=4), found, ratio=4), fine)


def test_places_are_counted_through_all_references() -> None:
    # A corner of the second of three references, whose rows are of other lengths.
    sides = ((4, 9), (5, 6), (3, 20))
    several = [noise(4, *side, seed=20 + number) for number, side in enumerate(sides)]
    found = find_matches(several[1][:, 2:, 3:], several)
    assert (int(found.start), int(found.row_lengths())) == (36 + 2 * 6 + 3, 6)
    torch.testing.assert_close(paste(cells(*several), found), several[1][:, 2:, 3:])
    last = find_matches(several[2][:, :, 17:], several)
    assert (int(last.start), int(last.row_lengths())) == (36 + 30 + 17, 20)


def test_overlaps_are_averaged() -> None:
    # Two patches of three columns that overlap by two: the first is columns 0-2 of the reference,
    # the second columns 3-5.
    row = torch.tensor([0.0, 1.0, 2.0, 10.0, 20.0, 30.0])
    reference = row.expand(1, 3, 6)
    pasted = paste(cells(reference), matches_of([[0, 3]], 6))
    wanted = torch.tensor([0.0, (1.0 + 10.0) / 2, (2.0 + 20.0) / 2, 30.0])
    torch.testing.assert_close(pasted, wanted.expand(1, 3, 4))


def test_finer_features_are_pasted_in_larger_cells() -> None:
    # One patch, of columns 1-3 of 4 positions, each of 2 x 2 finer ones.
    fine = torch.arange(6 * 8).view(1, 6, 8).float()
    pasted = paste(cells(fine, ratio=2), matches_of([[1]], 4), ratio=2)
    torch.testing.assert_close(pasted, fine[:, :, 2:8])


def test_the_similarity_around_a_position() -> None:
    found = matches_of([[0, 1]], 4)
    found.similarity[0] = torch.tensor([0.25, 0.75])
    wanted = torch.tensor([0.25, 0.25, 0.75, 0.75]).expand(3, 4)
    assert torch.equal(similarity_map(found), wanted)


@pytest.mark.parametrize(
    "references", [[], [torch.zeros(2, 2, 9)], [torch.zeros(3, 4, 4)]], ids=str
)
def test_what_cannot_be_searched(references: list[Tensor]) -> None:
    with pytest.raises(ValueError, match=r"no reference to look into|no features"):
        find_matches(torch.zeros(2, 4, 4), references)
