"""The model zoo: kernels and models written in tiles.

It registers with tkpy through the entry-point group ``tkpy.zoo``, as any other package may. The
registered module has ``kernels()`` (name -> kernel) and may have ``demo(console, text, seconds)``,
``commands()`` (a typer application) and ``systems()`` (name -> ``module:attribute`` of a
``zoo.training.System``).
"""

from zoo import kernels as kernels


def systems() -> dict[str, str]:
    """What ``tkpy train`` trains; a module is imported when its name is asked for."""
    return {"based": "zoo.based.system:system", "vqvae": "zoo.vqvae.system:system"}


def commands():
    """``tkpy train``, ``tkpy eval`` and ``tkpy generate``."""
    from zoo.training.commands import app

    return app


def demo(console, text: bytes, seconds: float) -> None:
    """``tkpy demo``: a small BASED model reads ``text``, see zoo.based.demo."""
    from zoo.based.demo import demo as run

    run(console, text, seconds)
