"""A stand-in for `python -m models`: same contract, milliseconds per step, scripted failures.

`behaviour` in the spec: step_s (time of a step), steps_file (a line for each step that was really done), crash_at
(kills itself at that step, every time), crash_once_at (once, remembered in a file), hang_at, error (an error event),
bytes (size of checkpoints), end (see the function), export (its own end, and export_without: a file that is missing),
resolved (fields of the spec that the data decided), figures (of every held-out item of a training of a comparison),
shifted and edited (figures of items of a shifted set, and of masks that were edited at random).
The loss at each step is a hash of all steps before, so a run that was resumed wrongly ends with other weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path


def tell(event: str, **facts: object) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


def written(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


class Training:
    def __init__(self, spec: dict, data: Path, out: Path, resume: Path | None, start_from: Path | None):
        self.spec, self.data, self.out, self.odd = spec, data, out, spec.get("behaviour", {})
        state = (
            json.loads(resume.read_bytes().rstrip(b" "))
            if resume
            else {"step": 0, "chain": _chain(start_from.read_text().rstrip()) if start_from else ""}
        )
        self.step, self.chain, self.resumed_from = state["step"], state["chain"], state["step"] or None
        self.stop = False
        signal.signal(signal.SIGTERM, self.on_stop)

    def on_stop(self, *_: object) -> None:
        self.stop = True

    def checkpoint(self) -> None:
        content = json.dumps({"step": self.step, "chain": self.chain}).encode().ljust(self.odd.get("bytes", 0))
        path = f"checkpoints/{self.step:06}.safetensors"
        tell("checkpoint", step=self.step, path=path, sha256=written(self.out / path, content), bytes=len(content))

    def misbehave(self) -> None:
        odd = self.odd
        if self.step == odd.get("crash_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.step == odd.get("crash_once_at") and not Path(odd["memory"]).exists():
            Path(odd["memory"]).touch()
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.step == odd.get("hang_at"):
            time.sleep(3600)
        if self.step == odd.get("error_at"):
            tell("error", **odd["error"])
            sys.exit(1)

    def measured(self, odd: str = "figures", *, shifted: bool = False) -> list[dict]:
        """Figures of the items that the fold holds out; errors are larger by 0, 1 or 2 from item to item."""
        facts = json.loads((self.data / "dataset.json").read_text())
        items = [item for item in facts["items"] if (item["split"] == "shifted") == shifted]
        held_out = list(enumerate(items))
        if not shifted:
            held_out = held_out[self.spec["fold"] :: self.spec["folds"] or 1]
        figures = {"dice": 0.9, "beta0_error": 4, "beta1_error": 2, "betti_matching_error": 6}
        figures |= self.odd.get(odd, {})
        return [
            {
                "id": item["id"],
                "figures": {
                    facts["classes"][1]: {
                        name: value + (position % 3 if name.endswith("error") else 0) for name, value in figures.items()
                    }
                },
            }
            for position, item in held_out
        ]

    def run(self) -> int:
        steps = self.spec["steps"]
        tell(
            "start", steps=steps, device="cpu", parameters=1, train_items=3, val_items=1, resumed_from=self.resumed_from
        )
        while self.step < steps:
            if self.stop:
                self.checkpoint()
                return 3
            self.step += 1
            time.sleep(self.odd.get("step_s", 0.02))
            self.chain = hashlib.sha256(f"{self.chain}{self.step}".encode()).hexdigest()
            if "steps_file" in self.odd:
                with Path(self.odd["steps_file"]).open("a") as file:
                    file.write(f"{self.step}\n")
            tell(
                "step",
                step=self.step,
                steps=steps,
                epoch=0,
                loss=1 / self.step,
                terms={},
                lr=0.1,
                seconds_per_step=0.02,
            )
            if self.step % self.spec["checkpoint_every"] == 0 or self.step == steps:
                self.checkpoint()
            self.misbehave()
        tell("validation", step=self.step, metrics={"dice": 0.9, "cldice": 0.8}, items=1, best=True)
        tell("memory", peak_bytes=10**8)
        sha256 = written(self.out / "best.safetensors", self.chain.encode())
        tell(
            "done",
            step=self.step,
            stopped_early=False,
            best_step=self.step,
            weights="best.safetensors",
            sha256=sha256,
            metrics={"dice": 0.9},
            items=self.measured(),
            shifted=self.measured("shifted", shifted=True),
            controls={name: self.measured("edited") for name in self.spec["controls"]} if "edited" in self.odd else {},
            **({"resolved": self.odd["resolved"]} if "resolved" in self.odd else {}),
        )
        return end(self.odd, self.out / "best.safetensors")


def _chain(text: str) -> str:
    """Of weights, or of a checkpoint that another run ended with."""
    return json.loads(text)["chain"] if text.startswith("{") else text


def end(odd: dict, weights: Path) -> int:
    """Misbehave after `done`: sleep with the output closed or open, die, fail, or damage what `done` named."""
    match odd.get("end"):
        case "slow, output closed":
            os.close(1)
            time.sleep(3600)
        case "slow, output open":
            time.sleep(3600)
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "status 1":
            return 1
        case "error":
            tell("error", code="internal", message="It was not done after all.")
        case "weights missing":
            weights.unlink()
        case "weights cut short":
            weights.write_bytes(weights.read_bytes()[:10])
    return 0


def export(weights: Path, out: Path, odd: dict) -> int:
    chain = weights.read_text()
    sha256 = written(out / "model.onnx", f"onnx of {chain}".encode())
    variants = {
        "int8": {"refused": None, "onnx_sha256": written(out / "model.int8.onnx", f"int8 of {chain}".encode())},
        "fp16": {"refused": "It changes too much.", "onnx_sha256": None},
    }
    (out / "manifest.json").write_text(json.dumps({"onnx_sha256": sha256, "chain": chain, "variants": variants}))
    if (missing := odd.get("export_without")) is not None:
        (out / missing).unlink()
    tell("done", onnx="model.onnx", manifest="manifest.json", onnx_sha256=sha256, verification={})
    return end(odd, weights)


def main() -> int:
    command, *rest = sys.argv[1:]
    options = {name.removeprefix("--"): Path(value) for name, value in zip(rest[::2], rest[1::2], strict=True)}
    if not (options["data"] / "dataset.json").exists():
        tell("error", code="input_invalid", message="There is no dataset.json.")
        return 2
    if command == "export":
        spec = json.loads((options["out"].parent / "spec.json").read_text())
        return export(options["weights"], options["out"], spec.get("behaviour", {}).get("export", {}))
    return Training(
        json.loads(options["spec"].read_text()),
        options["data"],
        options["out"],
        options.get("resume"),
        options.get("start-from"),
    ).run()


if __name__ == "__main__":
    sys.exit(main())
