"""All steps: times on this CPU, times on a simulated H100, as a table: ``python measure.py``."""

import argparse

import torch
from ladder import STEPS, kernel, on_an_h100, on_this_cpu, operands, turns

#: Tiles for a CPU: what a core's L2 cache holds.
LARGE = {"rows": 512, "cols": 512, "depth": 512}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", type=int, default=2048, help="side of the product on this CPU")
    parser.add_argument("--h100", type=int, default=4096, help="side of the product on the H100")
    args = parser.parse_args()
    kernels = [kernel(step) for step in STEPS]
    large = on_this_cpu(kernels[-1], args.cpu, **LARGE)
    a, b = operands(kernels[-1], args.cpu, args.cpu, args.cpu)
    others = [large, lambda: torch.mm(a, b)]
    *here, best, rival = turns([*(on_this_cpu(gemm, args.cpu) for gemm in kernels), *others])
    work = [2 * n**3 for n in (args.cpu, args.h100)]
    print(f"| step | CPU, {args.cpu}: ms | GFLOP/s | H100, {args.h100}: ms | TFLOP/s | bound by |")
    print("|---|---|---|---|---|---|")
    for step, gemm, ms in zip(STEPS, kernels, here, strict=True):
        seconds, _, binding = on_an_h100(gemm, args.h100)
        print(f"| {step} | {ms:.3g} | {work[0] / ms / 1e6:.0f} | {seconds * 1e3:.3g} "
              f"| {work[1] / seconds / 1e12:.3g} | {binding} |")  # fmt: skip
    for name, ms in (("8, larger tiles", best), ("torch.mm, bf16", rival)):
        print(f"| {name} | {ms:.3g} | {work[0] / ms / 1e6:.0f} | | | |")


if __name__ == "__main__":
    main()
