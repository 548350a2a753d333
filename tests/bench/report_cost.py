"""What reporting costs a run in a real ComfyUI to which two browsers are connected.

    python tests/bench/report_cost.py

Steps are slept through, so the process's own time is that of reporting and of sending what was reported, in whichever
thread; `report` is what the training thread itself waits.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import threading
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "comfy")]

NODE = '''
import json, time
from comfy_api.latest import ComfyExtension, io
from video_lora_studio.nodes.progress import RunListener
from video_lora_studio.training import Progress, RunConfig

class ReportCost(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="ReportCost", inputs=[io.Int.Input("steps"), io.Float.Input("seconds")],
                         outputs=[io.String.Output()], hidden=[io.Hidden.unique_id])

    @classmethod
    def execute(cls, steps, seconds):
        waited = []
        time.sleep(1)
        with RunListener(cls.hidden.unique_id, RunConfig(name="cost", steps=steps)) as listener:
            began, worked = time.perf_counter(), time.process_time()
            for step in range(1, steps + 1):
                if seconds:
                    time.sleep(seconds)
                start = time.perf_counter()
                listener.report(Progress(phase="Training", done=step, total=steps, loss=0.1, seconds_left=9.0))
                waited.append(time.perf_counter() - start)
            took, worked = time.perf_counter() - began, time.process_time() - worked
        waited.sort()
        return io.NodeOutput(json.dumps({"steps": steps, "step_ms": 1e3 * took / steps,
            "report_us": 1e6 * sum(waited) / steps, "p99_us": 1e6 * waited[int(0.99 * steps)],
            "process_us": 1e6 * worked / steps}))

class Pack(ComfyExtension):
    async def get_node_list(self):
        return [ReportCost]

async def comfy_entrypoint():
    return Pack()
'''
LINE = "{steps:>6} {step_ms:>9.2f} {report_us:>9.1f} {p99_us:>9.1f} {process_us:>10.1f} {share:>10.3f}"


def listen(port: int, stop: threading.Event) -> None:
    """A second browser's connection."""
    import websocket

    stream = websocket.create_connection(f"ws://127.0.0.1:{port}/ws?clientId=second", timeout=1)
    while not stop.is_set():
        try:
            stream.recv()
        except websocket.WebSocketTimeoutException:
            continue
    stream.close()


def main() -> None:
    from comfy_server import ComfyServer
    from graphs import node

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    server = ComfyServer(Path(tempfile.mkdtemp()))
    pack = server.folder / "custom_nodes" / "report_cost"
    pack.mkdir()
    (pack / "__init__.py").write_text(NODE)
    server.start()
    stop = threading.Event()
    other = threading.Thread(target=listen, args=(server.port, stop))
    other.start()
    try:
        logging.info(" steps   step ms report us    p99 us process us  % of step")
        for steps, seconds in ((2000, 0.0), (2000, 0.01), (40, 0.3)):
            graph = {"cost": node("ReportCost", steps=steps, seconds=seconds),
                     "shown": node("PreviewAny", source=("cost", 0))}
            result = server.queue(graph)
            assert result.status == "success", result.error
            told = json.loads(result.text("shown"))
            logging.info(LINE.format(**told, share=told["process_us"] / told["step_ms"] / 10))
    finally:
        stop.set()
        other.join()
        server.stop()


if __name__ == "__main__":
    main()
