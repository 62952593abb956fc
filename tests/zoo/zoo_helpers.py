"""What the tests of the zoo share: a comparison with an error model, poison, odd layouts."""

from __future__ import annotations

import inspect

import torch

from tkpy.execution import launcher

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def made(*shape: int, dtype=torch.float32, seed: int = 0, size: float = 1.0) -> torch.Tensor:
    """Normal numbers of one seed, in a layout that is not contiguous if the seed is odd."""
    generator = torch.Generator().manual_seed(1000 * seed + sum(shape))
    if seed % 2 == 0 or not shape:
        return (torch.randn(*shape, generator=generator) * size).to(dtype)
    wide = torch.randn(*shape[:-1], shape[-1] + 3, generator=generator) * size
    return wide.to(dtype)[..., 2:-1]


def outputs(kernel, *args, **keywords) -> dict[str, torch.Tensor]:
    """Every output that can be had of a call, optional ones and those in place included."""
    call = kernel.binder.bind(args, keywords)
    for p in kernel.signature.outputs:
        source = next((t for t in call.tensors if _shares_dtype(kernel, p, t)), None)
        if p.spec.optional and (not isinstance(p.spec.dtype, str) or source):
            keywords.setdefault(p.name, True)
    made_here = {n: t.clone() for n, t in call.tensors.items() if _in_place(kernel, n)}
    positional = [p.name for p in kernel.binder.positional]
    given = {**dict(zip(positional, args, strict=False)), **keywords, **made_here}
    got = kernel(**given)
    got = [] if got is None else list(got) if isinstance(got, tuple) else [got]
    names = [p.name for p in kernel.signature.outputs if not p.spec.optional or given.get(p.name)]
    return {**dict(zip(names, got, strict=True)), **made_here}


def _shares_dtype(kernel, p, name: str) -> bool:
    return kernel.signature.parameter(name).spec.dtype == p.spec.dtype


def _in_place(kernel, name: str) -> bool:
    return kernel.signature.parameter(name).spec.role == "inout"


def _is_real(t) -> bool:
    return isinstance(t, torch.Tensor) and t.is_floating_point()


def exact(kernel, *args, fn=None, **keywords) -> dict[str, torch.Tensor]:
    """What the kernel's reference (or ``fn``) says in float64, by name of output."""
    fn = fn or kernel.reference_fn
    positional = [p.name for p in kernel.binder.positional]
    given = {**dict(zip(positional, args, strict=False)), **keywords}
    wide = {n: t.double() if _is_real(t) else t for n, t in given.items()}
    known = inspect.signature(fn).parameters
    result = fn(**{n: v for n, v in wide.items() if n in known})
    result = result if isinstance(result, tuple) else (result,)
    names = [p.name for p in kernel.signature.outputs]
    names += [p.name for p in kernel.signature.inputs if _in_place(kernel, p.name)]
    return dict(zip(names, result, strict=True))


def agrees(kernel, *args, within: float = 8.0, **keywords) -> dict[str, torch.Tensor]:
    """Asserts |out - reference| <= within * eps * (sum of |terms|) for every output; returns them.

    eps is that of the coarsest element type among the output and the tensors that it is made of.
    """
    got = outputs(kernel, *args, **keywords)
    want = exact(kernel, *args, **keywords)
    terms = exact(kernel, *args, fn=kernel.reference_options["terms"], **keywords)
    tensors = [t for t in (*args, *keywords.values()) if isinstance(t, torch.Tensor)]
    coarse = max(torch.finfo(t.dtype).eps for t in tensors if _is_real(t))
    for name, out in got.items():
        eps = max(coarse, torch.finfo(out.dtype).eps)
        least = torch.finfo(out.dtype).smallest_normal * torch.finfo(out.dtype).eps
        close(out, want[name], within * eps * terms[name] + least, name)
    return got


def close(out: torch.Tensor, want: torch.Tensor, bound, name: str = "it") -> None:
    """Asserts |out - want| <= bound; a NaN is equal to a NaN only, an infinity to itself."""
    assert out.shape == want.shape, (name, out.shape, want.shape)
    out = out.double()
    error = (out - want).abs().masked_fill(out == want, 0)
    error = error.masked_fill(out.isnan() & want.isnan(), 0)
    bound = torch.as_tensor(bound, dtype=torch.float64).expand_as(error)
    wrong = ~(error <= bound + 1e-37)
    if wrong.any():
        at = tuple(int(i) for i in wrong.nonzero()[0])
        raise AssertionError(
            f"{name}{list(at)} is {out[at]:.9g}, expected {want[at]:.9g} within {bound[at]:.3g}; "
            f"{int(wrong.sum())} of {wrong.numel()} elements are wrong"
        )


def poisoned(kernel, *args, **keywords) -> dict[str, torch.Tensor]:
    """The outputs of the variant that holds NaN in every dead element of every tile."""
    call = kernel.binder.bind(args, keywords)
    kernel._allocate(call)
    source = kernel.lower(kernel.key_of(call), poison=True).source
    assert 'float("nan")' in source or "nan" in source, "nothing was poisoned"
    launch = launcher(source, kernel.name, call.device)
    for p in kernel.signature.inputs:
        if _in_place(kernel, p.name):
            call.tensors[p.name] = call.tensors[p.name].clone()
    tensors = [call.tensors[p.name] for p in kernel.signature.tensors if p.name in call.tensors]
    scalars = [call.scalars[p.name] for p in kernel.signature.scalars if p.name in call.scalars]
    launch(*tensors, *scalars)
    names = [p.name for p in call.wanted]
    names += [p.name for p in kernel.signature.inputs if _in_place(kernel, p.name)]
    return {n: call.tensors[n] for n in names}


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """True if two tensors agree in every bit, NaNs and signs of zero included."""
    integer = {8: torch.int64, 4: torch.int32, 2: torch.int16}[a.element_size()]
    return torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))
