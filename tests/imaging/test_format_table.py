"""The table of image formats holds: each format is read with every type, axis and channel its row names."""

from __future__ import annotations

import numpy as np
import pytest

from app.imaging import FORMATS, decode, decode_mask, read_header, sniff
from app.imaging.formats import MEDIA_TYPES, NAMES, SUFFIXES
from tests.gateway import Gateway
from tests.imaging.samples import LOSSY, WRITERS, pixels

EVERY = [(name, depth, axes) for name, row in FORMATS.items() for depth in row.depths for axes in row.dimensions]


def test_every_format_has_a_writer_among_the_samples():
    assert set(WRITERS) == set(FORMATS)


@pytest.mark.parametrize(("name", "depth", "dimensions"), EVERY)
def test_a_format_is_read_with_every_type_and_number_of_axes_that_its_row_names(name, depth, dimensions, limits):
    written = pixels(depth, dimensions)
    encoded = WRITERS[name](written)
    assert sniff(encoded).name == name
    header, picture = read_header(encoded, limits), decode(encoded, limits)
    assert (header.format, header.shape, header.channels, header.dtype) == (name, written.shape[1:], 1, depth)
    np.testing.assert_allclose(picture.pixels.astype(float), written.astype(float), atol=LOSSY.get(name, 1e-6))


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_read_with_three_channels(name, limits):
    row = FORMATS[name]
    written = pixels(row.depths[0], row.dimensions[-1], channels=3)
    picture = decode(WRITERS[name](written), limits)
    np.testing.assert_allclose(picture.pixels.astype(float), written.astype(float), atol=LOSSY.get(name, 0))


@pytest.mark.parametrize("name", FORMATS)
def test_whole_numbers_are_read_as_the_labels_of_a_mask(name, limits):
    labels = np.zeros((1, 16, 24), FORMATS[name].depths[0])
    labels[0, :, 8:] = 100
    mask = decode_mask(WRITERS[name](labels if 2 in FORMATS[name].dimensions else labels[:, None]), limits)
    assert abs(mask.reshape(16, 24).astype(int) - labels[0]).max() <= LOSSY.get(name, 0)


@pytest.mark.parametrize("name", [name for name, row in FORMATS.items() if row.writer])
def test_what_is_answered_in_a_format_is_read_as_that_format(name, limits):
    labels = pixels("uint8", 2)[0]
    encoded = FORMATS[name].writer(labels)
    assert sniff(encoded).name == name
    np.testing.assert_array_equal(decode(encoded, limits).pixels[0], labels)


def test_no_end_of_a_name_and_no_type_belongs_to_two_formats():
    ends = [suffix for row in FORMATS.values() for suffix in row.suffixes]
    types = [media for row in FORMATS.values() for media in row.media_types[1:]]
    assert len(ends) == len(set(ends)) == len(SUFFIXES) and len(types) == len(set(types))
    assert not set(types) & set(MEDIA_TYPES)


def test_the_openapi_document_pages_and_sentences_name_every_format(gateway: Gateway):
    document = gateway.ask("GET", "/openapi.json").json()
    for path in ("/v1/images", "/v1/analyses"):
        body = document["paths"][path]["post"]["requestBody"]
        assert set(MEDIA_TYPES) < set(body["content"]) and NAMES in body["description"]
    page = gateway.ask("GET", "/images", headers=gateway.headers("engineer") | {"Accept": "text/html"}).text
    assert NAMES in page and all(suffix in page for suffix in SUFFIXES)
    refused = gateway.upload(b"no image")
    assert refused.status_code == 415 and NAMES in refused.json()["detail"]
