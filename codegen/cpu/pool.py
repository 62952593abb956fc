"""The threads that run a grid: PyTorch's own, or a pool compiled here from LLVM IR.

PyTorch's threads spin for milliseconds after each of its operators. Threads of ours beside them
would fight for the same processors, so a launch joins the team of the OpenMP library that PyTorch
has loaded: its threads are awake already, and nothing waits for a processor. Where there is no such
library, and in a forked child, whose copy of it hangs, a pool of our own does the same work.

The caller is one of the workers. A launch publishes a job, wakes the others, takes chunks of
programs from a shared counter like everybody else, closes the job and waits for those who entered
it: a worker of our own pool that wakes too late is not waited for. Python's lock is not held
meanwhile (ctypes releases it), and no Python code runs per program or per thread.
"""

from __future__ import annotations

import ctypes
import os
import struct

from codegen.cpu.toolchain import Library, features, optimise

# job: 0 kernel, 8 args, 16 total, 24 gx|gy, 32 gz, 40 scratch, 48 stride, 56 status, 64 chunk,
# 128 next program, 192 generation, 256 open (2**32) + workers inside, 320 ids given,
# 328 threads wanted, 384 mutex, 512 condition. Counters that several threads write have cache
# lines of their own.
_JOB = struct.Struct("=QQqiiiiQqQq")
_IR = """
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_broadcast(ptr)
declare i32 @pthread_detach(i64)
{pause}

define internal void @work(ptr %job, i64 %me) {{
entry:
  %kernel = load ptr, ptr %job
  %args.p = getelementptr i8, ptr %job, i64 8
  %args = load ptr, ptr %args.p
  %total.p = getelementptr i8, ptr %job, i64 16
  %total = load i64, ptr %total.p
  %gx.p = getelementptr i8, ptr %job, i64 24
  %gx = load i32, ptr %gx.p
  %gy.p = getelementptr i8, ptr %job, i64 28
  %gy = load i32, ptr %gy.p
  %gz.p = getelementptr i8, ptr %job, i64 32
  %gz = load i32, ptr %gz.p
  %scratch.p = getelementptr i8, ptr %job, i64 40
  %base = load ptr, ptr %scratch.p
  %stride.p = getelementptr i8, ptr %job, i64 48
  %stride = load i64, ptr %stride.p
  %off = mul i64 %stride, %me
  %scratch = getelementptr i8, ptr %base, i64 %off
  %status.p = getelementptr i8, ptr %job, i64 56
  %status = load ptr, ptr %status.p
  %chunk.p = getelementptr i8, ptr %job, i64 64
  %chunk = load i64, ptr %chunk.p
  %next = getelementptr i8, ptr %job, i64 128
  br label %loop
loop:
  %begin = atomicrmw add ptr %next, i64 %chunk acq_rel
  %have = icmp slt i64 %begin, %total
  br i1 %have, label %run, label %done
run:
  %stop = add i64 %begin, %chunk
  %over = icmp sgt i64 %stop, %total
  %end = select i1 %over, i64 %total, i64 %stop
  call void %kernel(ptr %args, i64 %begin, i64 %end, i32 %gx, i32 %gy, i32 %gz,
                    ptr %scratch, ptr %status)
  br label %loop
done:
  ret void
}}

define internal ptr @worker(ptr %job) {{
entry:
  %ids = getelementptr i8, ptr %job, i64 320
  %gen = getelementptr i8, ptr %job, i64 192
  %busy = getelementptr i8, ptr %job, i64 256
  %want = getelementptr i8, ptr %job, i64 328
  %mutex = getelementptr i8, ptr %job, i64 384
  %cond = getelementptr i8, ptr %job, i64 512
  %me = atomicrmw add ptr %ids, i64 1 acq_rel
  br label %wait
wait:
  %seen = phi i64 [ 0, %entry ], [ %now2, %finished ], [ %now2, %enter ]
  br label %spin
spin:
  %tries = phi i64 [ 0, %wait ], [ %more, %again ]
  %now = load atomic i64, ptr %gen acquire, align 8
  %fresh = icmp ne i64 %now, %seen
  br i1 %fresh, label %go, label %again
again:
  {relax}
  %more = add i64 %tries, 1
  %tired = icmp sgt i64 %more, {spins}
  br i1 %tired, label %sleep, label %spin
sleep:
  %l = call i32 @pthread_mutex_lock(ptr %mutex)
  br label %check
check:
  %now1 = load atomic i64, ptr %gen acquire, align 8
  %woken = icmp ne i64 %now1, %seen
  br i1 %woken, label %unlock, label %doze
doze:
  %w = call i32 @pthread_cond_wait(ptr %cond, ptr %mutex)
  br label %check
unlock:
  %u = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %go
go:
  %now2 = load atomic i64, ptr %gen acquire, align 8
  br label %enter
enter:
  %state = load atomic i64, ptr %busy acquire, align 8
  %open = icmp uge i64 %state, 4294967296
  br i1 %open, label %try, label %wait
try:
  %in = add i64 %state, 1
  %pair = cmpxchg ptr %busy, i64 %state, i64 %in acq_rel acquire
  %ok = extractvalue {{ i64, i1 }} %pair, 1
  br i1 %ok, label %entered, label %enter
entered:
  %n = load i64, ptr %want
  %mine = icmp slt i64 %me, %n
  br i1 %mine, label %job1, label %finished
job1:
  call void @work(ptr %job, i64 %me)
  br label %finished
finished:
  %left = atomicrmw sub ptr %busy, i64 1 acq_rel
  br label %wait
}}

define internal void @member(ptr %job) {{
entry:
  %ids = getelementptr i8, ptr %job, i64 320
  %me = atomicrmw add ptr %ids, i64 1 acq_rel
  call void @work(ptr %job, i64 %me)
  ret void
}}

define void @team(ptr %job, ptr %parallel, i32 %threads) {{
entry:
  %next = getelementptr i8, ptr %job, i64 128
  %ids = getelementptr i8, ptr %job, i64 320
  store i64 0, ptr %next
  store atomic i64 0, ptr %ids release, align 8
  call void %parallel(ptr @member, ptr %job, i32 %threads, i32 0)
  ret void
}}

define i32 @spawn(ptr %job) {{
  %slot = alloca i64
  %r = call i32 @pthread_create(ptr %slot, ptr null, ptr @worker, ptr %job)
  %t = load i64, ptr %slot
  %d = call i32 @pthread_detach(i64 %t)
  ret i32 %r
}}

define void @run(ptr %job, i64 %workers) {{
entry:
  %gen = getelementptr i8, ptr %job, i64 192
  %busy = getelementptr i8, ptr %job, i64 256
  %next = getelementptr i8, ptr %job, i64 128
  %mutex = getelementptr i8, ptr %job, i64 384
  %cond = getelementptr i8, ptr %job, i64 512
  store i64 0, ptr %next
  %alone = icmp eq i64 %workers, 0
  br i1 %alone, label %solo, label %wake
solo:
  call void @work(ptr %job, i64 0)
  ret void
wake:
  store atomic i64 4294967296, ptr %busy release, align 8
  %l = call i32 @pthread_mutex_lock(ptr %mutex)
  %g = atomicrmw add ptr %gen, i64 1 acq_rel
  %b = call i32 @pthread_cond_broadcast(ptr %cond)
  %u = call i32 @pthread_mutex_unlock(ptr %mutex)
  call void @work(ptr %job, i64 0)
  %closed = atomicrmw and ptr %busy, i64 4294967295 acq_rel
  br label %join
join:
  %left = load atomic i64, ptr %busy acquire, align 8
  %idle = icmp eq i64 %left, 0
  br i1 %idle, label %out, label %hold
hold:
  {relax}
  br label %join
out:
  ret void
}}
"""


class Pool:
    """Threads that run the programs of a grid."""

    def __init__(self) -> None:
        f = features()
        x86 = f.name != "neon"
        text = _IR.format(
            pause="declare void @llvm.x86.sse2.pause()" if x86 else "",
            relax="call void @llvm.x86.sse2.pause()" if x86 else "",
            spins=2000,
        )
        self.library = Library(optimise(text, f)[2])
        self.memory = ctypes.create_string_buffer(1024 + 64)
        self.job = (ctypes.addressof(self.memory) + 63) & ~63
        self.words = (ctypes.c_int64 * 64).from_address(self.job)
        self.offset = self.job - ctypes.addressof(self.memory)
        self.words[40] = 1  # ids: the caller is worker 0
        self.parallel = 0 if _forked else _openmp()
        self._team = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)(
            self.library.address("team")
        )
        self._spawn = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)(
            self.library.address("spawn")
        )
        self._run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(
            self.library.address("run")
        )
        self.workers = 0

    def run(self, function: int, args: int, total: int, gx: int, gy: int, gz: int, scratch: int,
            stride: int, status: int, threads: int) -> None:  # fmt: skip
        """Run every program of a grid on ``threads`` threads and return when all are done."""
        chunk = max(1, total // (threads * 16))
        _JOB.pack_into(self.memory, self.offset, function, args, total, gx, gy, gz, 0, scratch,
                       stride, status, chunk)  # fmt: skip
        if self.parallel and threads > 1:
            return self._team(self.job, self.parallel, threads)
        while self.workers < threads - 1:
            if self._spawn(self.job):
                threads = self.workers + 1
                break
            self.workers += 1
        self.words[41] = threads
        self._run(self.job, self.workers if threads > 1 else 0)


def _openmp() -> int:
    """The address of GOMP_parallel in the OpenMP library that this process has loaded, or 0."""
    for name in ("libgomp.so.1", "libiomp5.so", "libomp.so", "libomp.so.5"):
        try:
            library = ctypes.CDLL(name, mode=os.RTLD_NOW | os.RTLD_NOLOAD)
            return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0
        except (OSError, AttributeError):  # not loaded, or no OpenMP, or a platform without dlopen
            continue
    return 0


_pools: list[Pool] = []
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True
    _pools.clear()


def pool() -> Pool:
    """The process's pool (a forked child gets its own: threads do not survive a fork)."""
    if not _pools:
        _pools.append(Pool())
    return _pools[0]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
