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
    """``tkpy demo``: small BASED models, one that reads ``text`` and one that learns to recall.

    The first gets two fifths of the time. See zoo.based.demo and zoo.based.learn.
    """
    from zoo.based.demo import demo as read
    from zoo.based.learn import learn

    read(console, text, 0.4 * seconds)
    learn(console, 0.6 * seconds)
