"""``python -m zoo.training``: the commands alone, for torchrun."""

from zoo.training.commands import app

if __name__ == "__main__":
    app()
