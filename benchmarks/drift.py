"""False alarms of DriftMonitor, frames until it finds a change, and defects that are no change.

A detector learns good images of a set. Scores of others, as they are and with another light, blurred or moved, are
computed once, and streams are drawn from these scores. The detectors of river see the same streams: pip install river.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, shift
from sklearn.pipeline import make_pipeline
from tqdm import tqdm

from benchmarks.common.features import add_set_options, image_sets
from benchmarks.common.reports import argument_parser, environment, markdown_table, write_results
from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.monitoring import DriftMonitor

ALPHA = 0.01
N_CALIBRATION, N_QUIET, N_CHANGED, N_LONG = 200, 1000, 2000, 10_000
DEFECT_RATES = (0.0, 0.01)
CONTRASTS = ("without tolerance", "fixed p-values")  # shown for one kind of score
STATISTICS: dict[str, Callable[[PatchGaussianDetector, np.ndarray], np.ndarray]] = {
    "score": lambda detector, maps: detector.score_maps(maps),
    "median": lambda _, maps: -np.median(maps, axis=(1, 2)),
}
METHOD = """\
EfficientNet-Lite0, otherwise the defaults. A detector learns {n_learn} good images of a set. {n_pool} others are scored, as they
are and changed, and up to {n_pool} images with defects. Streams are drawn from these scores with replacement, so that
nothing but the change distinguishes frames before it from frames after it: {n_calibration} calibration scores, then the frames.
An image has two: its *score* (`score_samples`: the mean of the largest 0.5 % of the map), and the *median* of its map, the bulk of it.

- *monitor*: `DriftMonitor(alpha={alpha})`, `fit` with the calibration scores, `update_scores` with the frames.
- *without tolerance*: the same with `defect_rate=0`.
- *fixed p-values*: `update` with p-values among the calibration scores alone, as `PatchGaussianDetector.p_values` gives
  them. This has no guarantee.
- *ADWIN*: river's, `delta={alpha}`, on the fixed p-values, because it takes values between 0 and 1.
- *Page-Hinkley*: river's defaults, on scores minus the mean, divided by the standard deviation, of the calibration scores."""  # noqa: E501 (a paragraph of Markdown)
ALARMS = """\
Share of {streams} streams of {n_long} frames in which there is an alarm, in per cent, for a share of defects among the
frames. All these alarms are false. The monitor's share is at most 1 % by theory where there are no defects."""
DELAYS = """\
Frames from a change until the alarm, after {n_quiet} good frames: the median of {streams} streams, and in brackets
their middle 80 %. Streams end {n_changed} frames after the change; "-" is no alarm until then. Alarms before the change
are not counted; their share stands behind. Brightness is a factor, blur a Gaussian with this standard deviation in
pixels of an image 256 wide, and a shift is to the right, by this share of the width, where the edge is mirrored.
Shifts by a fraction of a pixel also blur: 2 % of 256 pixels is nearly a whole number, 1 % and 3 % are not.
Another recording is the good tiles with names that begin with exp1, of which none is learnt."""


def changes() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return functions of an image (height, width, 3) with values from 0 to 255."""
    blur = {
        f"blur {pixels} pixels": lambda image, s=pixels: gaussian_filter(image, (s * image.shape[1] / 256,) * 2 + (0,))
        for pixels in (0.5, 1, 1.5)
    }
    return {
        **{f"brightness +{n} %": lambda image, n=n: image * (1 + n / 100) for n in (1, 2, 3)},
        **blur,
        **{
            f"shift {n} %": lambda image, n=n: shift(
                image, (0, n / 100 * image.shape[1], 0), order=1, mode="reflect", prefilter=False
            )
            for n in (1, 2, 3)
        },
    }


def changed(images: Sequence[Any], change: Callable[[np.ndarray], np.ndarray]) -> Iterator[np.ndarray]:
    for image in images:
        pixels = np.array(Image.open(image).convert("RGB")) if isinstance(image, Path) else image
        yield np.rint(np.clip(change(pixels.astype(np.float32)), 0, 255)).astype(np.uint8)


def pools(good: list[Any], defects: list[Any], later: list[Any], options: Any) -> dict[str, dict[str, np.ndarray]]:
    """Return the scores of good, of defective and of changed images, by the name of the statistic."""
    order = np.random.default_rng(0).permutation(len(good))
    learnt, pool = ([good[i] for i in part] for part in np.split(order, [options.n_learn]))
    pool = pool[: options.n_pool]
    pipe = make_pipeline(PatchFeatureExtractor("efficientnet_lite0"), PatchGaussianDetector()).fit(learnt)
    groups = {"good": pool, "defects": [defects[i] for i in np.random.default_rng(0).permutation(len(defects))]}
    groups["defects"] = groups["defects"][: options.n_pool]
    groups |= {name: list(changed(pool, change)) for name, change in changes().items()}
    groups |= {"another recording": later[: options.n_pool]} if later else {}
    scores: dict[str, dict[str, np.ndarray]] = {name: {} for name in STATISTICS}
    for group, images in tqdm(groups.items(), desc="images", unit="group"):
        maps = np.concatenate([pipe.transform(images[start : start + 25]) for start in range(0, len(images), 25)])
        for name, statistic in STATISTICS.items():
            scores[name][group] = statistic(pipe[-1], maps)
    return scores


def monitor_alarm(monitor: DriftMonitor, calibration: np.ndarray, frames: np.ndarray) -> int | None:
    monitor.fit(calibration)
    for part in np.array_split(frames, max(1, len(frames) // 500)):  # most changes are found soon
        if monitor.update_scores(part).alarm_:
            break
    return monitor.alarm_at_


def fixed_p_values(calibration: np.ndarray, frames: np.ndarray) -> np.ndarray:
    as_low = np.searchsorted(np.sort(calibration), frames, side="right")
    return (1 + as_low) / (1 + len(calibration))


def river_alarm(detector: Any, values: np.ndarray) -> int | None:
    for frame, value in enumerate(values.tolist(), 1):
        detector.update(value)
        if detector.drift_detected:
            return frame
    return None


def methods(seed: int) -> dict[str, Callable[[np.ndarray, np.ndarray], int | None]]:
    """Return functions of calibration scores and frames that return the frame of the first alarm, or None."""
    from river import drift

    def standardised(calibration: np.ndarray, frames: np.ndarray) -> np.ndarray:
        return (frames - calibration.mean()) / calibration.std()

    return {
        "monitor": lambda c, z: monitor_alarm(DriftMonitor(ALPHA, random_state=seed), c, z),
        "without tolerance": lambda c, z: monitor_alarm(DriftMonitor(ALPHA, defect_rate=0, random_state=seed), c, z),
        "fixed p-values": lambda c, z: DriftMonitor(ALPHA).update(fixed_p_values(c, z)).alarm_at_,
        "ADWIN": lambda c, z: river_alarm(drift.ADWIN(delta=ALPHA), fixed_p_values(c, z)),
        "Page-Hinkley": lambda c, z: river_alarm(drift.PageHinkley(), standardised(c, z)),
    }


def false_alarms(
    scores: dict[str, np.ndarray], streams: int, n_frames: int, left_out: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return the share of streams with an alarm, by the share of defects and the method."""
    shares: dict[str, dict[str, float]] = {}
    for rate in DEFECT_RATES:
        alarms: dict[str, list[bool]] = {}
        for seed in tqdm(range(streams), desc=f"{rate:.0%} defects", unit="stream"):
            rng = np.random.default_rng(seed)
            calibration, frames = (rng.choice(scores["good"], n) for n in (N_CALIBRATION, n_frames))
            frames = np.where(rng.random(n_frames) < rate, rng.choice(scores["defects"], n_frames), frames)
            used = {name: method for name, method in methods(seed).items() if name not in left_out}
            for name, method in used.items():
                alarms.setdefault(name, []).append(method(calibration, frames) is not None)
        shares[f"{100 * rate:g} %"] = {name: 100 * float(np.mean(values)) for name, values in alarms.items()}
    return shares


def delays(scores: dict[str, np.ndarray], streams: int) -> dict[str, dict[str, list[float]]]:
    """Return the frames until the alarm by change and method; infinity is none, negative is before the change."""
    found: dict[str, dict[str, list[float]]] = {}
    for change in tqdm([name for name in scores if name != "good"], desc="changes", unit="change"):
        found[change] = {"monitor": [], "ADWIN": [], "Page-Hinkley": []}
        for seed in range(streams):
            rng = np.random.default_rng(seed)
            calibration, before = (rng.choice(scores["good"], n) for n in (N_CALIBRATION, N_QUIET))
            frames = np.concatenate([before, rng.choice(scores[change], N_CHANGED)])
            known = methods(seed)
            for name, values in found[change].items():
                alarm = known[name](calibration, frames)
                values.append(np.inf if alarm is None else float(alarm - N_QUIET))
    return found


def cell(values: Sequence[float]) -> str:
    """Return the median and the middle 80 % of the delays, and the share of alarms before the change."""
    late = [value for value in values if value > 0]
    early = f"; {100 * (1 - len(late) / len(values)):.0f} % early" if len(late) < len(values) else ""
    if not late:
        return f"-{early}"
    low, median, high = (
        "-" if np.isinf(value) else f"{value:.0f}"
        for value in np.quantile(late, [0.1, 0.5, 0.9], method="inverted_cdf")
    )
    return (median if low == median == high else f"{median} ({low} to {high})") + early


def main() -> None:
    parser = argument_parser("benchmarks.drift", __doc__)
    add_set_options(parser, ["fabric", "part"])
    parser.add_argument("--n-learn", type=int, default=200)
    parser.add_argument("--n-pool", type=int, default=100)
    parser.add_argument("--streams", type=int, default=200, help="for the false alarms")
    parser.add_argument("--change-streams", type=int, default=50, help="for each change")
    parser.add_argument("--n-frames", type=int, default=N_LONG, help="of the streams for the false alarms")
    options = parser.parse_args()
    method = METHOD.format(alpha=ALPHA, n_calibration=N_CALIBRATION, **vars(options))
    parts = ["# Drift: false alarms, and frames until a change is found", method, environment()]
    alarms, found = {}, {}
    for title, (images, defects) in image_sets(options).items():
        recorded = [image for image in images if isinstance(image, Path) and image.name.startswith("exp1_")]
        good = [image for image in images if not any(image is other for other in recorded)]
        print(title, len(good), "good images", file=sys.stderr)
        for statistic, scores in pools(good, defects, recorded, options).items():
            left_out = () if statistic == "score" else CONTRASTS
            alarms[f"{title}, {statistic}"] = false_alarms(scores, options.streams, options.n_frames, left_out)
            found[f"{title}, {statistic}"] = delays(scores, options.change_streams)
    parts += ["## False alarms", ALARMS.format(streams=options.streams, n_long=options.n_frames), alarm_table(alarms)]
    parts += ["## Frames until the alarm", delay_text(options.change_streams)]
    for title in dict.fromkeys(name.rpartition(", ")[0] for name in found):
        parts += [f"### {title[0].upper()}{title[1:]}", delay_table({s: found[f"{title}, {s}"] for s in STATISTICS})]
    strict = json.loads(json.dumps(found), parse_constant=lambda _: None)  # JSON has no infinity
    values = {"environment": environment(), "false_alarms": alarms, "frames_until_the_alarm": strict}
    write_results(options, "drift", "\n\n".join(parts), values)


def delay_text(streams: int) -> str:
    return DELAYS.format(streams=streams, n_quiet=N_QUIET, n_changed=N_CHANGED)


def alarm_table(alarms: dict[str, dict[str, dict[str, float]]]) -> str:
    names = list(next(iter(next(iter(alarms.values())).values())))
    rows = [
        [title, rate, *(f"{shares[name]:.1f}" if name in shares else "" for name in names)]
        for title, rates in alarms.items()
        for rate, shares in rates.items()
    ]
    return markdown_table(["scores", "defects", *names], rows)


def delay_table(found: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    header = ["change", *(f"{method}, {name}" for name in found for method in next(iter(found[name].values())))]
    rows = [
        ["every frame has a defect" if change == "defects" else change]
        + [cell(values) for name in found for values in found[name][change].values()]
        for change in next(iter(found.values()))
    ]
    return markdown_table(header, rows)


if __name__ == "__main__":
    main()
