"""The network registry: shared loads, eviction, warm start, variants."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from app.errors import BlobCorrupt, Gone, NotFound
from app.imaging.picture import Picture
from app.serving.registry import Registry
from tests.images import noise
from tests.records import register, set_alias
from tests.serving import networks

IMAGE = Picture(noise(1, 24, 24), "png")


@pytest.fixture
def open_registry(database, blobs, settings):
    opened = []

    def make(**changes) -> Registry:
        opened.append(Registry(database, blobs, settings.model_copy(update=changes)))
        return opened[-1]

    yield make
    for registry in opened:
        registry.close()


def warm(registry, *versions):
    return [registry.network(version.id) is not None for version in versions]


def test_concurrent_callers_share_one_load(open_registry, database, blobs, project_id, monkeypatch):
    version, registry = register(database, blobs, project_id, "blur", networks.blur()), open_registry()
    reads, go = [], threading.Barrier(8)
    read = blobs.read
    monkeypatch.setattr(blobs, "read", lambda *args: reads.append(args) or read(*args))

    def ask(_):
        go.wait(10)
        return registry.get(project_id, version)

    with ThreadPoolExecutor(8) as threads:
        predictors = set(threads.map(ask, range(8)))
    assert len(predictors) == 1 and len(reads) == 1


def test_failed_load_reaches_all_waiting_callers_and_is_retried(open_registry, database, blobs, project_id):
    version, registry = register(database, blobs, project_id, "blur", networks.blur()), open_registry()
    blobs.delete(project_id, version.onnx_sha256)
    with ThreadPoolExecutor(4) as threads:
        refusals = [threads.submit(registry.get, project_id, version).exception() for _ in range(4)]
    assert all(isinstance(refusal, Gone) for refusal in refusals)
    blobs.put(project_id, networks.blur())
    assert registry.get(project_id, version).predict(IMAGE).labels.any()


def test_network_with_wrong_digest_is_never_loaded(open_registry, database, blobs, project_id):
    version, registry = register(database, blobs, project_id, "blur", networks.blur()), open_registry()
    blobs.local_path(project_id, version.onnx_sha256).write_bytes(networks.blur(gain=1.0))
    with pytest.raises(BlobCorrupt):
        registry.get(project_id, version)
    assert warm(registry, version) == [False]


def test_least_recently_used_network_is_evicted(open_registry, database, blobs, project_id):
    a, b, c = (
        register(database, blobs, project_id, name, networks.pyramid(width=8, seed=k), multiple=2, receptive_field=13)
        for k, name in enumerate("abc")
    )
    registry = open_registry(model_memory_bytes=a.onnx_bytes * 5 // 2, onnx_threads=1)
    registry.get(project_id, a), registry.get(project_id, b), registry.get(project_id, a), registry.get(project_id, c)
    assert warm(registry, a, b, c) == [True, False, True]


def test_network_larger_than_the_budget_is_served_alone(open_registry, database, blobs, project_id):
    a, b = (register(database, blobs, project_id, name, networks.constant(0.7)) for name in "ab")
    registry = open_registry(model_memory_bytes=1)
    predictors = [registry.get(project_id, version) for version in (a, b)]
    assert warm(registry, a, b) == [False, True]
    assert all(
        predictor.predict(IMAGE).labels.all() for predictor in predictors
    )  # the one that left still answers its caller


def test_aliased_versions_are_loaded_at_start(open_registry, database, blobs, project_id):
    old, new, broken = (
        register(database, blobs, project_id, "tones", networks.constant(value)) for value in (0.2, 0.8, 0.9)
    )
    set_alias(database, new, "champion")
    set_alias(database, broken, "broken")
    blobs.delete(project_id, broken.onnx_sha256)
    registry = open_registry()
    registry.warm()
    assert registry.wait_until_warm(30)
    assert warm(registry, old, new, broken) == [False, True, False]


def test_prediction_is_the_same_alone_and_concurrently(open_registry, database, blobs, project_id):
    version = register(database, blobs, project_id, "p", networks.pyramid(), multiple=2, receptive_field=13)
    predictor = open_registry(onnx_threads=2).get(project_id, version)
    picture = Picture(noise(1, 128, 128), "png")
    alone = predictor.predict(picture)
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda _: predictor.predict(picture), range(8)))
    for answer in together:
        np.testing.assert_allclose(answer.probability, alone.probability, atol=1e-6)


def with_variants(database, blobs, project_id, name="blur"):
    """A version whose int8 form answers 0.9 everywhere, so that an answer tells which one gave it."""
    sha256, size = blobs.put(project_id, networks.constant(0.9))
    kept = {"refused": None, "onnx_sha256": sha256, "bytes": size, "verification": {}}
    refused = {
        "refused": "0.20% of the pixels change their class; 0.10% may.",
        "onnx_sha256": None,
        "bytes": None,
        "verification": {},
    }
    return register(database, blobs, project_id, name, networks.constant(0.1), variants={"int8": kept, "fp16": refused})


def test_variant_is_loaded_beside_the_full_network(open_registry, database, blobs, project_id):
    version, registry = with_variants(database, blobs, project_id), open_registry()
    assert registry.get(project_id, version, "int8").predict(IMAGE).probability.max() == np.float32(0.9)
    assert registry.network(version.id) is None, "only the variant was asked for"
    assert registry.get(project_id, version).predict(IMAGE).probability.max() == np.float32(0.1)
    assert registry.get(project_id, version, "int8") is registry.get(project_id, version, "int8")
    registry.unload(version.id)
    assert not registry._entries


def test_missing_variant_is_refused_with_the_reason(open_registry, database, blobs, project_id):
    registry, version = open_registry(), with_variants(database, blobs, project_id)
    with pytest.raises(NotFound, match=r"made and refused: 0\.20% of the pixels"):
        registry.get(project_id, version, "fp16")
    with pytest.raises(NotFound, match=r"no variant int8\. Variants: none"):
        registry.get(project_id, register(database, blobs, project_id, "plain", networks.blur()), "int8")
    assert not registry._entries
