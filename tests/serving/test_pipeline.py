"""The prediction pipeline: scaling, thresholds, channels, tiling, memory."""

import threading
import tracemalloc

import numpy as np
import pytest

from app.errors import ImageTooSmall, Invalid, ModelNonFinite, WrongInput
from app.imaging.picture import Picture
from app.serving.contract import Manifest
from app.serving.load import Load
from app.serving.pipeline import Predictor, Stop, Stopped, luminance
from app.serving.runtime import Network
from app.serving.scaling import Scaler
from tests.serving import networks
from topology.components import betti_numbers


def picture(pixels):
    return Picture(np.ascontiguousarray(pixels), "png")


def predictor(content, *, tile_batch=1, **facts):
    manifest = Manifest.model_validate(networks.manifest(content, **facts))
    network = Network(content, manifest, Load(), threads=2)
    return Predictor(manifest, network, tile_batch=tile_batch, extra=network.extra)


def noise(*shape, seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_scaling_gives_what_training_computes(dtype):
    from models.scaling import scale

    image = (
        noise(2, 130, 90).astype(np.float64) * (1 if dtype == np.uint8 else 13) - (1600 if dtype == np.int16 else 0)
    ).astype(dtype)
    figures = {"mean": [100.0, 3.5], "std": [12.0, 0.0]}
    for stated in (
        {"kind": "image"},
        {"kind": "min_max"},
        {"kind": "percentile", "low": 2.0, "high": 97.5},
        {"kind": "dataset", **figures},
        {"kind": "clipped", **figures, "low": [90.0, -7.5], "high": [110.0, 200.0]},
    ):
        manifest = Manifest.model_validate(networks.manifest(b"", channels=2, scaling=stated))
        np.testing.assert_allclose(Scaler(image, manifest.scaling)(image), scale(image, stated), rtol=1e-6, atol=1e-6)


def test_values_beyond_the_bounds_of_a_scaling_are_cut_off():
    image = np.arange(101, dtype=np.float32).reshape(1, 1, 101)
    percentile = {"kind": "percentile", "low": 10.0, "high": 90.0}
    clipped = {"kind": "clipped", "mean": [50.0], "std": [10.0], "low": [30.0], "high": [60.0]}
    for stated, bounds in ((percentile, (0.0, 1.0)), (clipped, (-2.0, 1.0)), ({"kind": "min_max"}, (0.0, 1.0))):
        scaled = Scaler(image, Manifest.model_validate(networks.manifest(b"", scaling=stated)).scaling)(image)
        np.testing.assert_allclose((scaled.min(), scaled.max()), bounds, atol=1e-6)


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"kind": "percentile", "low": 60.0, "high": 40.0}, "low must be smaller"),
        ({"kind": "clipped", "mean": [0.0], "std": [1.0], "low": [2.0], "high": [1.0]}, "none of them above"),
        ({"kind": "clipped", "mean": [0.0], "std": [1.0], "low": [0.0, 0.0], "high": [1.0, 1.0]}, "2 bounds for 1"),
    ],
)
def test_bounds_of_a_scaling_that_are_no_range_are_refused(stated, words):
    with pytest.raises(ValueError, match=words):
        Manifest.model_validate(networks.manifest(b"", scaling=stated))


def test_scaling_is_precise_for_large_values():
    image = (np.random.default_rng(0).normal(0, 1, (1, 2000, 1000)) + 1e5).astype(np.float32)
    scaler = Scaler(image, Manifest.model_validate(networks.manifest(b"")).scaling)
    np.testing.assert_allclose(scaler.figures[0].divisor, image.astype(np.float64).std(), rtol=1e-9)


def test_a_constant_image_becomes_zeros():
    image = np.full((1, 16, 16), 7, np.uint8)
    assert not Scaler(image, Manifest.model_validate(networks.manifest(b"")).scaling)(image).any()


def test_mask_is_the_network_probability_above_the_threshold():
    image = noise(1, 20, 30)
    answer = predictor(networks.blur(side=1, gain=1.0)).predict(picture(image))
    scaled = (image[0] - image.mean()) / (image.std() + 1e-6)
    np.testing.assert_allclose(answer.probability[0], 1 / (1 + np.exp(-scaled)), atol=1e-5)
    np.testing.assert_array_equal(answer.labels, answer.probability[0] > 0.5)
    assert answer.labels.dtype == np.uint8 and set(answer.timings_ms) == {"normalise", "infer", "stitch"}


def test_threshold_changes_the_mask_but_not_the_probability():
    model = predictor(networks.blur())
    low, high = (model.predict(picture(noise(1, 40, 40)), threshold=t) for t in (0.3, 0.7))
    np.testing.assert_array_equal(low.probability, high.probability)
    assert low.labels.sum() > high.labels.sum() > 0


def test_multiclass_mask_is_the_most_probable_class():
    model = predictor(networks.bands(3), classes=("background", "wall", "lumen"))
    answer = model.predict(picture(noise(1, 40, 40)))
    np.testing.assert_array_equal(answer.labels, answer.probability.argmax(0))
    assert set(np.unique(answer.labels)) == {0, 1, 2} and answer.threshold is None
    np.testing.assert_allclose(answer.probability.sum(0), 1, atol=1e-5)


def test_a_threshold_for_several_classes_is_refused_not_ignored():
    model = predictor(networks.bands(3), classes=("background", "wall", "lumen"))
    with pytest.raises(Invalid, match="3 classes"):
        model.predict(picture(noise(1, 40, 40)), threshold=0.5)


@pytest.mark.parametrize("size", [(256, 256), (250, 310), (61, 257), (129, 64)])
@pytest.mark.parametrize("batch", [1, 4])
def test_tiled_prediction_equals_one_pass(size, batch):
    content, image = networks.pyramid(), noise(1, *size)
    facts = {"multiple": 2, "receptive_field": networks.PYRAMID_FIELD}
    whole = predictor(content, **facts).predict(picture(image))
    tiled = predictor(content, tile_batch=batch, tile=[48, 48], **facts).predict(picture(image))
    assert whole.tiles == 1 and tiled.tiles > 4
    np.testing.assert_allclose(tiled.probability, whole.probability, atol=2e-6)
    assert 0.05 < whole.labels.mean() < 0.95


class Recorder:
    """A session that remembers how many images each run had and who ran it, and lets two runs meet."""

    def __init__(self, session):
        self.session, self.runs, self.together = session, [], threading.Barrier(2)

    def run(self, names, inputs, options):
        self.runs.append((len(inputs["image"]), threading.get_ident()))
        if self.together is not None:
            self.together.wait(10)
        return self.session.run(names, inputs, options)


def test_tiles_of_a_single_prediction_run_in_parallel():
    content, image = networks.pyramid(), picture(noise(1, 90, 90))
    facts = {"multiple": 2, "receptive_field": networks.PYRAMID_FIELD}
    model = predictor(content, tile_batch=2, tile=[48, 48], **facts)
    network = model.run
    narrow = network._narrow = Recorder(network._narrow)
    answer = model.predict(image)
    assert (
        answer.tiles == 9
        and [images for images, _ in narrow.runs] == [1] * 8
        and len({thread for _, thread in narrow.runs}) == 2
    )
    np.testing.assert_allclose(answer.probability, predictor(content, **facts).predict(image).probability, atol=2e-6)
    narrow.runs.clear()
    narrow.together = None
    with network._load.one_more():  # somebody else predicts
        model.predict(image)
    assert [images for images, _ in narrow.runs] == [2] * 4 + [1]


def test_failed_or_stopped_tile_ends_the_prediction():
    model, image = predictor(networks.blur(), tile_batch=2, tile=[48, 48]), picture(noise(1, 90, 90))
    model.run._narrow = None
    with pytest.raises(AttributeError):
        model.predict(image)
    stop = Stop()

    class Leaving:
        def run(self, *_):
            stop.ask()
            raise RuntimeError("terminated")

    model.run._narrow = Leaving()
    with pytest.raises(Stopped):
        model.predict(image, stop=stop)


@pytest.mark.parametrize("seed", range(6))
def test_tile_seams_do_not_change_topology(seed):
    content, image = networks.pyramid(seed=seed), noise(1, 200, 168, seed=seed)
    facts = {"multiple": 2, "receptive_field": networks.PYRAMID_FIELD}
    whole = predictor(content, **facts).predict(picture(image)).labels
    tiled = predictor(content, tile=[40, 56], **facts).predict(picture(image)).labels
    assert betti_numbers(tiled) == betti_numbers(whole)
    assert betti_numbers(whole) != (1, 0)


@pytest.mark.parametrize(
    "shape, channels, tiles", [((260, 200), [8, 16, 32], (128, 112)), ((44, 50, 60), [4, 8], (44, 40))]
)
def test_unet_prediction_does_not_depend_on_tiling(shape, channels, tiles):
    """The threshold lies where no probability is as near as rounding, so equal masks are no luck."""
    import torch

    from models.networks import build

    torch.manual_seed(0)
    dimensions = len(shape)
    unet = build({"name": "unet", "dimensions": dimensions, "channels": channels}, channels_in=1, channels_out=1)
    with torch.no_grad():  # normalised as after training, so that the answer has contrast
        for _ in range(20):
            unet.train()(torch.randn(1, 1, *[64 if dimensions == 2 else 24] * dimensions))
    unet.eval()
    facts = {"dimensions": dimensions, "multiple": unet.multiple, "receptive_field": unet.receptive_field}
    image = picture(noise(1, *shape))

    def run(batch, stop):
        with torch.no_grad():
            return torch.sigmoid(unet(torch.from_numpy(batch))).numpy()

    def answer(tile, threshold=0.5, **changes):
        manifest = Manifest.model_validate(networks.manifest(b"", tile=[tile] * dimensions, **facts | changes))
        return Predictor(manifest, run).predict(image, threshold=threshold)

    whole = answer(4 * max(shape))
    middle = np.sort(whole.probability, axis=None)[
        whole.probability.size * 2 // 5 : whole.probability.size * 3 // 5
    ].astype(np.float64)
    widest = np.diff(middle).argmax()
    threshold, room = middle[widest : widest + 2].mean(), np.diff(middle)[widest] / 2
    expected = whole.probability[0] > np.float32(threshold)
    for tile in tiles:
        tiled = answer(tile, float(threshold))
        assert whole.tiles == 1 and tiled.tiles > 3
        assert np.abs(tiled.probability - whole.probability).max() < room
        np.testing.assert_array_equal(tiled.labels, expected)
        assert betti_numbers(tiled.labels) == betti_numbers(expected) and sum(betti_numbers(expected)) > 100
    careless = answer(tiles[0], float(threshold), receptive_field=1)
    assert (careless.labels != expected).any(), "a network that sees nothing beyond a tile would prove nothing"


def test_tiles_without_margin_show_seams():
    """The two tests above would pass with any stitching if the network never looked beyond a tile."""
    content, image = networks.pyramid(), noise(1, 200, 168)
    whole = predictor(content, multiple=2, receptive_field=networks.PYRAMID_FIELD).predict(picture(image))
    careless = predictor(content, multiple=2, receptive_field=1, tile=[40, 56]).predict(picture(image))
    assert np.abs(careless.probability - whole.probability).max() > 1e-3


def test_volumes_are_cut_along_all_three_axes():
    content, volume = networks.blur_3d(), noise(1, 40, 50, 60)
    whole = predictor(content, dimensions=3, tile=[64, 64, 64]).predict(picture(volume))
    tiled = predictor(content, dimensions=3, tile=[16, 24, 24]).predict(picture(volume))
    assert whole.tiles == 1 and tiled.tiles > 8
    np.testing.assert_allclose(tiled.probability, whole.probability, atol=2e-6)


def test_image_is_padded_to_the_multiple_and_cropped_back():
    content, image = networks.pyramid(), noise(1, 33, 47)
    for padding in ("edge", "reflect"):
        answer = predictor(content, multiple=2, padding=padding, receptive_field=networks.PYRAMID_FIELD).predict(
            picture(image)
        )
        filled = np.pad(image, [(0, 0), (0, 1), (0, 1)], mode=padding)
        scaled = ((filled - image.mean()) / (image.std() + 1e-6)).astype(np.float32)
        manifest = Manifest.model_validate(networks.manifest(content))
        expected = Network(content, manifest, Load(), threads=1)(scaled[None], Stop())[0, :, :33, :47]
        np.testing.assert_allclose(answer.probability, expected, atol=1e-5)


def test_colour_image_for_a_grey_model_is_converted_to_luminance_and_reported():
    image = noise(3, 30, 30)
    model = predictor(networks.blur())
    answer = model.predict(picture(image))
    assert answer.conversion == "luminance"
    np.testing.assert_array_equal(answer.probability, model.predict(picture(luminance(image))).probability)
    np.testing.assert_array_equal(luminance(image)[0], np.rint(0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]))


def test_grey_image_for_a_colour_model_becomes_three_equal_colours():
    image = noise(1, 30, 30)
    model = predictor(networks.blur(channels=3), channels=3)
    answer = model.predict(picture(image))
    assert answer.conversion == "grey_to_rgb"
    np.testing.assert_array_equal(answer.probability, model.predict(picture(np.repeat(image, 3, 0))).probability)


@pytest.mark.parametrize(
    "channels, shape, words",
    [
        (3, (2, 30, 30), "has 2 channels; this model was trained on 3 channels. Send an RGB image"),
        (2, (3, 30, 30), "2 channels"),
        (1, (1, 9, 30, 30), "3 axes, 9 x 30 x 30"),
    ],
)
def test_image_of_wrong_kind_is_refused_with_a_suggestion(channels, shape, words):
    with pytest.raises(WrongInput) as refusal:
        predictor(networks.blur(channels=channels), channels=channels).predict(picture(noise(*shape)))
    assert words in refusal.value.detail


def test_an_image_below_the_smallest_size_is_refused_with_that_size():
    model = predictor(networks.blur(), multiple=8)
    model.predict(picture(noise(1, 8, 8)))
    for size in ((7, 8), (1, 1), (1, 900)):
        with pytest.raises(ImageTooSmall, match="at least 8 x 8"):
            model.predict(picture(noise(1, *size)))


def test_nan_network_output_is_refused():
    with pytest.raises(ModelNonFinite):
        predictor(networks.not_a_number()).predict(picture(noise(1, 30, 30)))


def test_abandoned_prediction_stops():
    stop, runs = Stop(), []
    content = networks.blur()
    manifest = Manifest.model_validate(networks.manifest(content, tile=[16, 16]))

    def run(batch, stop):
        stop.options()
        runs.append(1)
        stop.ask()
        return np.full_like(batch, 0.5)

    with pytest.raises(Stopped):
        Predictor(manifest, run).predict(picture(noise(1, 90, 90)), stop=stop)
    assert len(runs) == 1
    with pytest.raises(Stopped):
        predictor(content).predict(picture(noise(1, 90, 90)), stop=stop)


def test_probability_is_not_kept_unless_needed():
    answer = predictor(networks.blur(), tile=[16, 16]).predict(picture(noise(1, 90, 90)), probability=False)
    assert answer.probability is None and answer.labels.any()


@pytest.mark.parametrize(
    "shape, dtype, tile, most",
    [
        ((1, 1400, 1600), np.uint8, 128, 1.3),
        ((3, 1400, 1600), np.uint8, 128, 0.9),
        ((1, 80, 180, 180), np.uint8, 32, 1.6),
        ((1, 80, 180, 180), np.int16, 32, 0.7),
        ((1, 80, 180, 180), np.float32, 32, 0.5),
    ],
)
def test_memory_of_a_large_image_is_mask_overlap_and_one_tile(shape, dtype, tile, most):
    """In bytes of the image, beyond it.

    A mask of bytes is 1.0 of a grey image of bytes; the whole answer as float32 would be 4.0.
    """
    image, dimensions = noise(*shape, dtype=dtype), len(shape) - 1
    manifest = Manifest.model_validate(
        networks.manifest(b"", dimensions=dimensions, tile=[tile] * dimensions, receptive_field=5)
    )
    model = Predictor(manifest, lambda batch, stop: 1 / (1 + np.exp(-batch)))
    small = Picture(np.ascontiguousarray(image[(slice(None), *[slice(tile)] * dimensions)]), "png")
    (_, one_tile), (answer, peak) = (traced(model, each) for each in (small, picture(image)))
    assert answer.tiles > 30 and 0.2 < answer.labels.mean() < 0.8
    assert peak < most * image.nbytes + one_tile, f"{(peak - one_tile) / image.nbytes:.2f} times the image"


def traced(model, image):
    tracemalloc.start()
    try:
        return model.predict(image, probability=False), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_callers_pixels_are_not_changed():
    image = noise(1, 90, 90)
    before = image.copy()
    image.setflags(write=False)
    predictor(networks.blur(), tile=[16, 16]).predict(picture(image))
    np.testing.assert_array_equal(image, before)


def test_a_persistence_threshold_is_computed_when_asked_for_and_is_the_mean_over_tiles():
    image = picture(noise(1, 40, 60))
    facts = {"extra_outputs": ["persistence_threshold"], "receptive_field": 3}
    whole, tiled = (
        predictor(networks.with_threshold(), **facts),
        predictor(networks.with_threshold(), tile=[40, 32], **facts),
    )
    np.testing.assert_allclose(whole.persistence_threshold(image), (0, 0.25), atol=1e-6)
    scaled = (image.pixels[0] - image.pixels.mean()) / image.pixels.std()
    mean, deviation = tiled.persistence_threshold(image)
    assert tiled.predict(image).tiles == 2 and deviation == 0.25
    assert mean == pytest.approx((scaled[:, :31].mean() + scaled[:, 29:].mean()) / 2, abs=1e-5)
    np.testing.assert_allclose(tiled.predict(image).probability, whole.predict(image).probability, atol=1e-6)
    assert predictor(networks.blur()).persistence_threshold(image) is None
    stop = Stop()
    stop.ask()
    with pytest.raises(Stopped):
        whole.persistence_threshold(image, stop=stop)


def test_the_same_scene_in_another_depth_is_scaled_alike_where_the_training_type_is_known() -> None:
    scene = np.random.default_rng(0).integers(0, 256, (1, 8, 8), dtype=np.uint8)
    stated = {"kind": "dataset", "mean": [100.0], "std": [12.0], "dtype": "uint8"}
    scaling = Manifest.model_validate(networks.manifest(b"", scaling=stated)).scaling
    expected = Scaler(scene, scaling)(scene)
    for pixels in (scene.astype(np.uint16) * 257, (scene / 255).astype(np.float32)):
        scaler = Scaler(pixels, scaling)
        assert scaler.conversion == "depth"
        np.testing.assert_allclose(scaler(pixels), expected, atol=1e-4)
    for pixels in (scene.astype(np.int16), scene.astype(np.float32)):  # no range is known: as they are, and said
        scaler = Scaler(pixels, scaling)
        assert scaler.conversion == "depth_unknown"
        np.testing.assert_allclose(scaler(pixels), expected, atol=1e-4)
    assert Scaler(scene, scaling).conversion is None
    deep = Manifest.model_validate(networks.manifest(b"", scaling=stated | {"dtype": "uint16"})).scaling
    assert (Scaler(scene, deep).conversion, Scaler(scene.astype(np.uint16), deep).conversion) == ("depth", None)


@pytest.mark.parametrize(
    ("dtype", "said"), [("uint8", None), ("uint16", "depth_unknown"), ("float32", "depth_unknown")]
)
def test_a_network_that_does_not_say_its_training_type_is_doubted_aloud(dtype: str, said: str | None) -> None:
    stated = {"kind": "dataset", "mean": [0.0], "std": [1.0]}
    scaling = Manifest.model_validate(networks.manifest(b"", scaling=stated)).scaling
    assert Scaler(np.ones((1, 4, 4), dtype), scaling).conversion == said


def test_the_figures_of_an_image_need_no_depth() -> None:
    scaling = Manifest.model_validate(networks.manifest(b"", scaling={"kind": "image"})).scaling
    assert Scaler(np.arange(16, dtype=np.float32).reshape(1, 4, 4), scaling).conversion is None
