"""Asynchronous templates: hooks over rings of stages, as in ThunderKittens, without semaphores."""
