"""Components of label maps against SciPy, and contacts against scikit-image and the definition."""

from itertools import product

import numpy as np
import pytest
from scipy import ndimage
from skimage.graph import RAG

from tests.topology.masks import mask
from topology.contacts import absent_contacts, contacts, forbidden_contacts
from topology.label_maps import NEIGHBOURS, find_components, keep_largest, remove_dust

NEIGHBOURHOODS = [(ndim, neighbours) for ndim, choices in NEIGHBOURS.items() for neighbours in choices]


def label_maps(count, ndim, *, seed):
    random = np.random.default_rng(seed)
    for _ in range(count):
        values = random.integers(0, random.integers(2, 5), tuple(random.integers(1, 11, ndim)))
        yield values.astype(random.choice([np.uint8, np.int16, np.int64, np.uint64]))


def structure(ndim, neighbours):
    return ndimage.generate_binary_structure(ndim, 1 + NEIGHBOURS[ndim].index(neighbours))


@pytest.mark.parametrize("ndim, neighbours", NEIGHBOURHOODS)
def test_components_of_every_class_are_those_of_scipy_in_raster_order(ndim, neighbours):
    for labels in label_maps(40, ndim, seed=1):
        found = find_components(labels, neighbours=neighbours)
        expected = []  # (first pixel, class, pixels, box) of each component
        for value in np.unique(labels[labels > 0]):
            parts, _ = ndimage.label(labels == value, structure(ndim, neighbours))
            for k, box in enumerate(ndimage.find_objects(parts), start=1):
                where = np.flatnonzero(parts == k)
                expected.append((where[0], value, where.tolist(), [[s.start for s in box], [s.stop for s in box]]))
        expected.sort(key=lambda part: part[0])
        assert [np.flatnonzero(found.labels == k + 1).tolist() for k in range(len(found.sizes))] == [
            part[2] for part in expected
        ]
        assert found.classes.tolist() == [part[1] for part in expected] and found.classes.dtype == labels.dtype
        assert found.sizes.tolist() == [len(part[2]) for part in expected]
        assert found.boxes.tolist() == [part[3] for part in expected]


def test_negative_classes_and_ids_of_64_bits_keep_their_names():
    labels = np.array([[-3, -3, 0, 2**40], [0, 0, 2**40, 0], [7, -3, -3, 0]])
    found = find_components(labels)
    assert found.classes.tolist() == [-3, 2**40, 7, -3] and found.sizes.tolist() == [2, 2, 1, 2]
    assert find_components(labels, neighbours=4).classes.tolist() == [-3, 2**40, 2**40, 7, -3]


def test_diagonal_voxels_join_across_edges_from_18_and_across_corners_from_26():
    edge, corner = np.zeros((2, 2, 2), bool), np.zeros((2, 2, 2), bool)
    edge[0, 0, 0] = edge[0, 1, 1] = corner[0, 0, 0] = corner[1, 1, 1] = True
    counts = [[len(find_components(each, neighbours=n).sizes) for n in (6, 18, 26)] for each in (edge, corner)]
    assert counts == [[2, 1, 1], [2, 2, 1]]


def test_the_largest_components_are_kept_class_by_class():
    labels = np.array([[1, 1, 0, 1, 0, 2], [0, 0, 0, 0, 0, 0], [2, 2, 0, 2, 2, 0]])
    assert keep_largest(labels).tolist() == [[1, 1, 0, 0, 0, 0], [0] * 6, [2, 2, 0, 0, 0, 0]]
    assert keep_largest(labels, 2).tolist() == [[1, 1, 0, 1, 0, 0], [0] * 6, [2, 2, 0, 2, 2, 0]]
    assert keep_largest(labels > 0).dtype == bool and not keep_largest(np.zeros((2, 2))[:] > 0).any()


def test_dust_is_what_has_fewer_pixels_than_asked():
    labels = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [2, 2, 2, 0]], np.int16)
    assert np.array_equal(remove_dust(labels, 1), labels)
    assert remove_dust(labels, 2).tolist() == [[1, 1, 0, 0], [0] * 4, [2, 2, 2, 0]]
    assert remove_dust(labels, 3).tolist() == [[0] * 4, [0] * 4, [2, 2, 2, 0]]
    assert labels[0, 3] == 1


@pytest.mark.parametrize("ndim, neighbours", NEIGHBOURHOODS)
def test_contacts_are_the_neighbouring_pairs_of_two_classes(ndim, neighbours):
    steps = [step for step in product((-1, 0, 1), repeat=ndim) if structure(ndim, neighbours)[tuple(np.add(step, 1))]]
    for labels in label_maps(15, ndim, seed=2):
        counted = {}
        for here in np.ndindex(labels.shape):
            for there in (tuple(np.add(here, step)) for step in steps):
                if here < there and all(0 <= k < side for k, side in zip(there, labels.shape, strict=True)):
                    pair = tuple(sorted((int(labels[here]), int(labels[there]))))
                    if pair[0] != pair[1]:
                        first, count = counted.get(pair, (here, 0))
                        counted[pair] = min(first, here), count + 1
        found = contacts(labels, neighbours=neighbours, background=None)
        assert [(each.classes, (each.position, each.count)) for each in found] == sorted(counted.items())
        inner = contacts(labels, neighbours=neighbours)
        assert inner == [each for each in found if 0 not in each.classes]


def test_classes_that_touch_are_the_edges_of_scikit_images_region_graph():
    for ndim in (2, 3):
        for labels in (each.astype(np.int64) for each in label_maps(10, ndim, seed=3)):
            for across, neighbours in ((1, NEIGHBOURS[ndim][0]), (ndim, NEIGHBOURS[ndim][-1])):
                edges = {tuple(sorted(edge)) for edge in RAG(labels, connectivity=across).edges}
                found = contacts(labels, neighbours=neighbours, background=None)
                assert {each.classes for each in found} == edges


def test_contacts_that_are_not_allowed_are_named_with_their_place():
    labels = np.array([[1, 1, 2], [3, 0, 2], [3, 0, 1]])
    assert forbidden_contacts(labels, [(2, 1)]) == [((1, 3), 1, (0, 0))]
    assert forbidden_contacts(labels, [(1, 2), (3, 1)]) == []
    assert absent_contacts(labels, [(1, 2), (3, 2), (4, 0), (3, 0)]) == [(0, 4), (2, 3)]
    bar = mask("##.##").astype(int)
    assert forbidden_contacts(bar, []) == [] and contacts(bar, background=None) == [((0, 1), 2, (0, 1))]


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: find_components(np.ones((2, 2))), "whole numbers"),
        (lambda: find_components(np.ones(4, int)), "1 axes"),
        (lambda: find_components(np.ones((2, 2), int), neighbours=6), "4, 8"),
        (lambda: contacts(np.ones((2, 2, 2), int), neighbours=8), "6, 18, 26"),
        (lambda: keep_largest(np.ones((2, 2), int), 0), "at least 1"),
    ],
)
def test_invalid_label_maps_are_refused_with_a_reason(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
