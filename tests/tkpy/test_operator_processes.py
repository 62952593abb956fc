"""Kernels in processes that were forked or spawned, and in threads."""

import multiprocessing
import threading
import time

import pytest
import torch
from operator_kernels import gram, scaled


class Data(torch.utils.data.Dataset):
    """Whose items are computed by kernels, one of them held as an attribute."""

    def __init__(self):
        self.kernel = gram

    def __len__(self):
        return 4

    def __getitem__(self, k):
        x = torch.full((4, 40, 8), float(k)).requires_grad_()
        y = self.kernel(x, torch.ones(40))
        scaled(x[0], torch.ones(8)).sum().backward()
        return y[0, 0, 0].detach() + x.grad.sum()


WANT = [8.0 * k * k + 320 for k in range(4)]


@pytest.mark.parametrize(
    "method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)]
)  # spawning imports torch again
def test_in_a_worker_of_a_loader(method):
    assert Data()[1] == WANT[1], "the threads of this process have started"
    loader = torch.utils.data.DataLoader(
        Data(), num_workers=1, multiprocessing_context=method, timeout=60
    )
    assert [float(v) for v in loader] == WANT


def _child(results):
    torch.set_num_threads(2)
    x = torch.full((6, 40, 8), 3.0)
    results.put(all(bool((gram(x, torch.ones(40)) == 72.0).all()) for _ in range(100)))


def test_parent_and_child_run_at_once_and_share_nothing():
    context = multiprocessing.get_context("fork")
    x = torch.full((6, 40, 8), 2.0)
    gram(x, torch.ones(40))
    results = context.Queue()
    child = context.Process(target=_child, args=(results,))
    child.start()
    while child.is_alive():
        assert (gram(x, torch.ones(40)) == 32.0).all()
        if not results.empty():
            break
    assert results.get(timeout=60)
    child.join(60)


def _launch(results):
    results.put(float(scaled(torch.ones(20, 8), torch.ones(8)).sum()))


def test_a_child_forked_while_another_thread_runs_a_kernel():
    from codegen.cpu import launch

    scaled(torch.ones(20, 8), torch.ones(8))
    held, done = threading.Event(), threading.Event()

    def hold():
        with launch._lock:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_launch, args=(results,), daemon=True)
    child.start()
    began = time.monotonic()
    child.join(30)
    done.set()
    thread.join()
    assert child.exitcode == 0 and time.monotonic() - began < 30, "the child waits for a lock"
    assert results.get(timeout=10) == 160.0
