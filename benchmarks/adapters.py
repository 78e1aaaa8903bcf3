"""How long a LoRA takes to put on a model of Stable Diffusion 1.x's or XL's size and to take off, and what memory.

    pip install '.[test]' && python benchmarks/adapters.py
    python benchmarks/adapters.py --preset sdxl --dtype float16 --rank 32

Random weights; a LoRA of all layers that kohya's tools train by default, of these and the convolutions (LoCon), and a
LoHa of the same, written to a file and read again. The least that putting on can take is copying the tensors that are
changed; the two take turns in one process. That every tensor is the same object with the same numbers afterwards is
checked each time. CPU seconds are of all threads together while it is put on, which other work on the machine disturbs
less than the time by the clock. Memory is the peak of the resident memory above that of the process with model and
file in memory, in units of the changed tensors' size.
"""

from __future__ import annotations

import json
import tempfile

from measuring import Report, Times, arguments, ratio, run

MEASURE = """
import json, resource, sys, time
from pathlib import Path
import torch
from safelight.adapters.card import Card
from safelight.adapters.kinds import LoHa, LoRA
from safelight.adapters.lora import Adapter, Strength, changes, read_lora, write_lora
from safelight.adapters.names import adapted, layers, targets
from safelight.adapters.patching import patched
from safelight.models.networks import unfilled
from safelight.presets import PRESETS

preset, dtype, rank, kind, turns, folder = sys.argv[1:7]
preset, dtype, path = PRESETS[preset], getattr(torch, dtype), Path(folder) / "x.safetensors"
made = LoHa if kind == "loha" else LoRA
generator = torch.Generator().manual_seed(0)
networks, kinds = {}, {}
for part, config in adapted(preset.networks).items():
    network = unfilled(config).to_empty(device="cpu").to(dtype).requires_grad_(False)
    for parameter in network.parameters():
        parameter.uniform_(-0.05, 0.05)
    networks[part], shapes = network, layers(config)
    kinds[part] = {}
    for layer in targets(config, convolutions=kind != "lora"):
        shape = shapes[layer]
        of_rank = min(int(rank), shape[0], torch.Size(shape[1:]).numel())
        one = made.fresh(shape, of_rank, of_rank / 2, generator)
        for parameter in one.parameters():
            parameter.data.uniform_(-0.1, 0.1)
        kinds[part][layer] = one
write_lora(path, Adapter(kinds, Card("x")), preset, dtype=torch.float16)
del kinds

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

started = time.perf_counter()
adapter = read_lora(path, preset)
reading = time.perf_counter() - started
both = [(adapter, Strength())]
for part in networks:  # what PyTorch needs to begin with is not the adapter's
    [(layer, kind_), *_] = adapter.kinds[part].items()
    with patched(networks[part], {layer: [(kind_, 1.0)]}):
        pass
changed = [networks[part].get_parameter(f"{x}.weight") for part in networks for x in adapter.kinds[part]]
size = sum(tensor.numel() * tensor.element_size() for tensor in changed)
before = {part: [(id(p), p.detach().sum().item()) for p in network.parameters()] for part, network in networks.items()}
bytes_before = peak()
on, off, least, busy = [], [], [], []
for turn in range(int(turns)):
    started, worked = time.perf_counter(), time.process_time()
    contexts = [patched(network, changes(both, part)) for part, network in networks.items()]
    for context in contexts:
        context.__enter__()
    on.append(time.perf_counter() - started)
    busy.append(time.process_time() - worked)
    if turn == 0:
        memory = peak() - bytes_before
    started = time.perf_counter()
    for context in contexts:
        context.__exit__(None, None, None)
    off.append(time.perf_counter() - started)
    for part, network in networks.items():
        assert before[part] == [(id(p), p.detach().sum().item()) for p in network.parameters()], part
    started = time.perf_counter()
    copies = [tensor.clone() for tensor in changed]
    least.append(time.perf_counter() - started)
    del copies
times = {"on": on, "busy": busy, "off": off, "least": least}
print(json.dumps({**times, "reading": reading, "memory": memory / size, "size": size}))
"""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--preset", default="sd1")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="of the model")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--kinds", nargs="+", choices=("lora", "locon", "loha"), default=("lora", "locon", "loha"))
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    report = Report.of(options)
    print(f"{options.preset}, {options.dtype}, rank {options.rank}, a file in float16\n")
    print(
        f"{'':<8}{'read, s':>9}{'on, s':>9}{'CPU s':>9}{'off, s':>9}{'copying, s':>12}{'on / copying':>14}{'':<18}",
        end="",
    )
    print(f"{'changed, GB':>13}{'memory':>9}")
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as folder:
            given = (options.preset, options.dtype, str(options.rank), kind, str(options.turns), folder)
            found = json.loads(run(MEASURE, *given))
        on, busy, off, least = (Times(found[name]) for name in ("on", "busy", "off", "least"))
        line = f"{kind:<8}{found['reading']:>9.2f}{on.median:>9.2f}{busy.median:>9.2f}{off.median:>9.4f}"
        line += f"{least.median:>12.2f}{ratio(on, least):>32}{found['size'] / 1e9:>13.2f}{found['memory']:>9.2f}"
        report.add(line, kind=kind, **found)


if __name__ == "__main__":
    main()
