"""video-lora: the engine from a command line, without ComfyUI."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path

from .listener import Progress


class TerminalListener:
    """Shows a line that is rewritten in place; Ctrl-C stops by itself."""

    def __init__(self):
        self._shown_at = 0.0

    def check(self) -> None: ...

    def report(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._shown_at < 0.2 and progress.done < progress.total or not sys.stderr.isatty():
            return
        self._shown_at = now
        loss = "" if progress.loss is None else f"  loss {progress.loss:.4f}"
        left = "" if progress.seconds_left is None else f"  {progress.seconds_left:.0f} s left"
        end = "\n" if progress.done >= progress.total else ""
        sys.stderr.write(f"\r\033[K{progress.phase} {progress.done}/{progress.total}{loss}{left}{end}")
        sys.stderr.flush()


def demo(arguments: argparse.Namespace) -> None:
    """Train a real LoRA file on a tiny random model and say what it changed."""
    import torch

    from .demo import STEPS, run_demo

    torch.set_num_threads(1)  # the model is so small that threads would mostly wait for each other
    started = time.monotonic()
    steps = arguments.steps or STEPS
    result = run_demo(arguments.out.resolve(), TerminalListener(), clips=arguments.clips, steps=steps)
    print(result.dataset_report, result.training.report, sep="\n\n")
    print(
        f"\nLoss at fixed noise: {result.before:.4f} before, {result.after:.4f} with the LoRA file "
        f"({result.after / result.before:.0%})\n"
        f"LoRA file: {result.training.lora_files[0]}\n{time.monotonic() - started:.0f} s in all"
    )


def info(arguments: argparse.Namespace) -> None:
    """Print what a LoRA or model file says of itself."""
    from ..loaders.safetensors_file import read_header

    header = read_header(arguments.file)
    loras = [name for name in header.tensors if name.endswith((".lora_A.weight", ".lora_down.weight"))]
    print(f"{header.path.name}: {header.size / 2**20:.1f} MB, {len(header.tensors)} tensors")
    if loras:
        ranks = sorted({header.tensors[name].shape[0] for name in loras})
        print(f"LoRA of {len(loras)} layers, rank {', '.join(map(str, ranks))}")
        print(f"First layer: {loras[0].rsplit('.', 2)[0]}")
    else:
        from .families import open_base_model

        base = open_base_model(arguments.file)
        print(f"Base model: {base.title}, stored as {base.stored_as}")
        print(f"Clips: {base.grid.time_stride} × n + 1 frames at {base.grid.fps:g} fps, "
              f"width and height in multiples of {base.grid.size_multiple}")
    for name, value in sorted(header.metadata.items()):
        if value.startswith("{"):
            long = json.dumps(json.loads(value), indent=1)
            value = long if arguments.all else f"{len(value)} characters (--all shows)"
        print(f"  {name}: {value}")


def cache(arguments: argparse.Namespace) -> None:
    """Print what a feature cache holds; delete what no training set needs, where that is asked for."""
    from ..loaders.feature_cache import FeatureCache
    from .dataset.cache_care import clean_cache

    if not arguments.folder.is_dir():
        raise ValueError(f"There is no folder {arguments.folder}: give the feature cache's.")
    print(clean_cache(FeatureCache(arguments.folder), remove=arguments.remove, forget_after=arguments.forget_after))


def captions(arguments: argparse.Namespace) -> None:
    """Print the captions of a folder, or change them in all its clips."""
    from .dataset import review

    folder, what = arguments.folder, arguments.what
    if what == "list":
        for clip in review.review(folder):
            print(f"{clip.name}{' (left out)' if clip.excluded else ''}: {clip.caption or 'no caption'}")
        return
    if what == "replace":
        done = review.replace_everywhere(
            folder, arguments.find, arguments.put, match_case=arguments.match_case, whole_words=arguments.whole_words
        )
    else:
        done = (review.insert_trigger if what == "insert" else review.remove_trigger)(folder, arguments.word)
    for change in done.changes:
        print(f"{change.name}: {change.after or 'no caption'}")
    print(f"{len(done.changes)} changed")
    if done.failed:
        raise ValueError(" ".join(done.failed.values()))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main_parser = argparse.ArgumentParser(prog="video-lora", description="Train video LoRAs from a folder of footage.")
    commands = main_parser.add_subparsers(required=True, metavar="COMMAND")

    sub = commands.add_parser("demo", help="the main job on a tiny random model, on the CPU, in under a minute")
    sub.add_argument("--clips", type=Path, metavar="FOLDER", help="your own clips instead of drawn ones")
    sub.add_argument("--steps", type=int, help="training steps (default: 100)")
    sub.add_argument("--out", type=Path, default=Path("video_lora_demo"), help="where to write (default: %(default)s)")
    sub.set_defaults(run=demo)

    sub = commands.add_parser("info", help="what a LoRA or model file says of itself")
    sub.add_argument("file", type=Path, metavar="FILE")
    sub.add_argument("--all", action="store_true", help="show long entries as well")
    sub.set_defaults(run=info)

    sub = commands.add_parser("cache", help="what the feature cache holds, and removing what is not needed")
    sub.add_argument("folder", type=Path, metavar="FOLDER", help="output/video_lora/_features of your ComfyUI")
    sub.add_argument("--remove", action="store_true", help="delete the files that no training set needs")
    sub.add_argument("--forget-after", type=int, default=0, metavar="DAYS",
                     help="sets not prepared for so long are not needed (default: keep all)")
    sub.set_defaults(run=cache)

    sub = commands.add_parser("captions", help="see and change the captions of a folder of clips")
    _add_caption_commands(sub.add_subparsers(required=True, metavar="WHAT", dest="what"))
    sub.set_defaults(run=captions)
    return main_parser


def _add_caption_commands(commands) -> None:
    for what, told in (("list", "print every clip's caption"), ("replace", "find and replace a text everywhere"),
                       ("insert", "put a trigger word before every caption"),
                       ("remove", "take a trigger word out of every caption")):
        sub = commands.add_parser(what, help=told)
        sub.add_argument("folder", type=Path, metavar="FOLDER")
        if what == "replace":
            sub.add_argument("find", metavar="FIND")
            sub.add_argument("put", metavar="REPLACEMENT")
            sub.add_argument("--match-case", action="store_true", help="capital and small letters differ")
            sub.add_argument("--whole-words", action="store_true", help="do not find cat in category")
        elif what != "list":
            sub.add_argument("word", metavar="WORD")


def main(argv: list[str] | None = None) -> int:
    """Run a command; 1 where it ended with an error, said in one line."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    arguments = parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):  # Windows consoles and pipes may lack letters of names and captions
        stream.reconfigure(errors="replace")
    try:
        arguments.run(arguments)
    except (ValueError, OSError) as error:
        print(f"video-lora: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nvideo-lora: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
