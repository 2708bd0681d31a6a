"""What the workers of test_pool.py do, in a module that they can import."""

import os
import signal
import time
from typing import List, Tuple

from i2srf_kd.system.errors import UserError

started_with: List[str] = []


def note_start(word: str) -> None:
    started_with.append(word)


def square(number: int) -> Tuple[int, int, List[str]]:
    time.sleep(0.2 if number == 0 else 0.0)  # the first result comes last
    return number * number, os.getpid(), started_with


def fail_at_three(number: int) -> int:
    try:
        return 6 // (number - 3)
    except ZeroDivisionError as error:
        raise UserError(f"item {number} is bad") from error


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def sleep_long(number: int) -> int:
    time.sleep(600)
    return number
