"""Our engine beside MONAI's own inferer: `python -m Testing.benchmarks.engine`, or `make bench`.

The same `vista3d132` with random weights, the same clicks, a ROI of 128³ voxels. Each side lives in a
process of its own, so that its memory can be measured and our allocator settings do not help the other; the
two take turns, and the ratios are of the faster of each one's turns. Writes `build/bench/engine.json`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROI = 128
FIRST, SECOND_INSIDE = (64, 70, 58), (40, 64, 90)
SECOND_WINDOW = (128, 64, 64)
OBJECTS = 10


def image(depth: int = ROI) -> np.ndarray:
    """A fixed random volume."""
    return np.random.default_rng(0).random((depth, ROI, ROI), dtype=np.float32)


def random_weights() -> Any:
    """MONAI's `vista3d132` with fixed random weights."""
    from monai.networks.nets.vista3d import vista3d132

    torch.manual_seed(0)
    return vista3d132().eval()


class Reference:
    """The seed's way: MONAI's `point_based_window_inferer`, every window encoded at every call."""

    def __init__(self, _: str) -> None:
        self.network = random_weights()

    def call(self, volume: np.ndarray, points: list[tuple[int, int, int]], start: int = 0) -> torch.Tensor:
        from monai.apps.vista3d.inferer import point_based_window_inferer

        labels = torch.tensor([[1] + [0] * (len(points) - 1)])
        with torch.no_grad():
            return point_based_window_inferer(
                torch.from_numpy(volume)[None, None],
                (ROI,) * 3,
                self.network,
                torch.tensor([points]),
                labels,
                point_start=start,
                center_only=True,
                transpose=True,
                with_coord=True,
                mode="gaussian",
            )

    def first(self) -> tuple[float, Any]:
        volume = image()
        seconds, logits = timed(lambda: self.call(volume, [FIRST]))
        return seconds, np.asarray(logits)[0, 0]

    def later(self) -> tuple[float, Any]:
        """The click's own window only, so that the comparison is of one pass with one pass."""
        volume = image()
        seconds, logits = timed(lambda: self.call(volume, [FIRST, SECOND_INSIDE], start=1))
        return seconds, np.asarray(logits)[0, 0]

    def second(self) -> tuple[float, Any]:
        volume = image(192)
        seconds, logits = timed(lambda: self.call(volume, [FIRST, SECOND_WINDOW]))
        return seconds, np.asarray(logits)[0, 0]

    def objects(self) -> tuple[float, Any]:
        volume = image()
        seconds, _ = timed(lambda: [self.call(volume, [at]) for at in object_clicks()])
        return seconds, None


class Ours:
    """The same through `Engine` and `ReferenceStrategy`."""

    def __init__(self, precision: str) -> None:
        from GSMedSegLib.engine import Engine
        from GSMedSegLib.memory import keep_freed_memory
        from GSMedSegLib.network import build_network

        self.engine = Engine(build_network(random_weights().state_dict()), "cpu", precision)
        keep_freed_memory()

    def strategy(self, volume: np.ndarray) -> Any:
        from GSMedSegLib.reference import ReferenceStrategy

        strategy = ReferenceStrategy(self.engine, ROI)
        strategy.set_image(volume, (1.0, 1.0, 1.0))
        strategy._image = torch.from_numpy(volume)  # as the other side gets it: unscaled
        return strategy

    def first(self) -> tuple[float, Any]:
        strategy = self.strategy(image())
        seconds, segment = timed(lambda: strategy.predict(clicks(FIRST)))
        return seconds, segment.logits.numpy()

    def later(self) -> tuple[float, Any]:
        embedding = self.engine.encode(torch.from_numpy(image()), key="roi")
        coords, labels = np.array([[FIRST, SECOND_INSIDE]]), np.array([[1, 0]])
        seconds, logits = timed(lambda: self.engine.decode(embedding, coords, labels))
        return seconds, logits[0].numpy()

    def second(self) -> tuple[float, Any]:
        strategy = self.strategy(image(192))
        strategy.predict(clicks(FIRST))
        seconds, segment = timed(lambda: strategy.predict(clicks(FIRST, SECOND_WINDOW)))
        return seconds, segment.logits.numpy()

    def objects(self) -> tuple[float, Any]:
        strategy = self.strategy(image())
        strategy.predict(clicks(FIRST))
        seconds, _ = timed(lambda: [strategy.predict(clicks(at)) for at in object_clicks()])
        return seconds, None


class Compact:
    """The bundled weights with the adaptive strategy, as a user gets them."""

    def __init__(self, precision: str) -> None:
        from GSMedSegLib.memory import keep_freed_memory
        from GSMedSegLib.predictor import load_engine

        keep_freed_memory()
        self.engine = load_engine("compact", "cpu", precision)

    def first(self) -> tuple[float, Any]:
        """A first click on a sphere in a 128³ image, from clicking to mask."""
        from GSMedSegLib.predictor import Predictor

        k, j, i = np.indices((ROI,) * 3) - 64
        volume = image() + 2 * (k**2 + j**2 + i**2 < 20**2)
        predictor = Predictor(self.engine)
        predictor.set_image(volume)
        predictor.add_object("sphere")
        predictor.add_click("sphere", (64, 64, 64))
        seconds, _ = timed(lambda: predictor.predict("sphere"))
        return seconds, None


def clicks(first: tuple[int, int, int], *background: tuple[int, int, int]) -> list[Any]:
    """A foreground click and background clicks."""
    from GSMedSegLib.prompts import Click

    return [Click(first, True), *(Click(at, False) for at in background)]


def object_clicks() -> list[tuple[int, int, int]]:
    """One click for each of ten objects."""
    return [(20 + 9 * n, 100 - 8 * n, 30 + 7 * n) for n in range(OBJECTS)]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def serve(side: type, argument: str, threads: int, pipe: Connection) -> None:
    """A side's process: measures what it is asked to, until asked for its peak memory."""
    torch.set_num_threads(threads)
    subject = side(argument)
    pipe.send("ready")
    while (task := pipe.recv()) != "end":
        pipe.send(getattr(subject, task)())
    pipe.send(peak_memory())


def peak_memory() -> float:
    """Most resident memory of this process so far, in GiB; NaN on Windows."""
    if sys.platform == "win32":
        return float("nan")
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Side:
    """A process that measures on demand."""

    def __init__(self, side: type, argument: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(side, argument, threads, other))
        self.process.start()
        other.close()
        self.pipe.recv()

    def __call__(self, task: str) -> Any:
        """What the side answers to a task; most answer with seconds and a result."""
        self.pipe.send(task)
        return self.pipe.recv()

    def end(self) -> float:
        """Stop; returns the peak memory in GiB."""
        self.pipe.send("end")
        peak = self.pipe.recv()
        self.process.join()
        return float(peak)


def faster(turns: int, task: str, *sides: Side) -> tuple[list[float], list[Any]]:
    """Let the sides take turns; the fewest seconds of each and its last result."""
    seconds, results = [float("inf")] * len(sides), [None] * len(sides)
    for _ in range(turns):
        for n, side in enumerate(sides):
            took, results[n] = side(task)
            seconds[n] = min(seconds[n], took)
    return seconds, results


def main() -> int:
    """Measure, print and write."""
    from GSMedSegLib.engine import has_bf16

    parser = argparse.ArgumentParser(prog="Testing.benchmarks.engine", description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, default=Path("build/bench/engine.json"))
    options = parser.parse_args()
    bf16 = has_bf16(torch.device("cpu"))
    reference, ours = Side(Reference, "", options.threads), Side(Ours, "fp32", options.threads)
    figures: dict[str, float | None] = {}
    times: dict[str, dict[str, float]] = {}

    def compare(name: str, task: str, turns: int) -> list[Any]:
        seconds, results = faster(turns, task, reference, ours)
        times[name] = {"reference_s": seconds[0], "ours_s": seconds[1]}
        figures[name] = seconds[0] / seconds[1]
        print(
            f"{name:<20} MONAI {seconds[0]:8.2f} s   ours {seconds[1]:8.2f} s   {figures[name]:6.1f} x",
            flush=True,
        )
        return results

    expected, logits = compare("first_click_fp32", "first", options.turns)
    first_s = times["first_click_fp32"]["reference_s"]
    differences = [relative(expected, logits)]
    differences.append(relative(*compare("later_click", "later", options.turns)))
    differences.append(relative(*compare("second_click", "second", 1)))
    compare("ten_objects", "objects", 1)
    figures["rel_diff"] = max(differences)
    memory = {"reference_gib": reference.end(), "ours_gib": ours.end()}
    figures["peak_memory_ratio"] = memory["ours_gib"] / memory["reference_gib"]
    figures["first_click_bf16"] = None
    if bf16:
        half = Side(Ours, "bf16", options.threads)
        (seconds,), (logits,) = faster(options.turns, "first", half)
        half.end()
        figures["first_click_bf16"] = first_s / seconds
        times["first_click_bf16"] = {"reference_s": first_s, "ours_s": seconds}
        flips = float(((logits > 0) != (expected > 0)).mean())
        print(
            f"first_click_bf16     ours {seconds:.2f} s, {figures['first_click_bf16']:.1f} x, "
            f"{100 * flips:.1f} % of the signs differ"
        )
    else:
        print("first_click_bf16     not measured: this processor has no bfloat16 arithmetic")
    compact = Side(Compact, "auto", options.threads)
    (seconds,), _ = faster(1 + options.turns, "first", compact)
    compact.end()
    figures["compact_first_click"] = first_s / seconds
    times["compact_first_click"] = {"reference_s": first_s, "ours_s": seconds}
    print(f"compact_first_click  ours {seconds:.2f} s, {figures['compact_first_click']:.0f} x")
    print(
        f"rel_diff {figures['rel_diff']:.1e}, "
        f"peak memory {memory['ours_gib']:.1f} of {memory['reference_gib']:.1f} GiB"
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    report = {
        **figures,
        "seconds": times,
        "memory": memory,
        "threads": options.threads,
        "torch": torch.__version__,
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def relative(expected: np.ndarray, got: np.ndarray) -> float:
    """Largest difference over the largest value."""
    return float(np.nanmax(np.abs(expected - got)) / np.nanmax(np.abs(expected)))


if __name__ == "__main__":
    raise SystemExit(main())
