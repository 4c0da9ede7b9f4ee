"""Each run in a fresh child process of its own, so that one method's memory never shows in
another's.
"""

import multiprocessing
import os
import signal
import traceback

PRELOAD = ["torch", "transformers.models.auto.modeling_auto", "peft", "tqdm"]


class Refused(Exception):
    """An error whose message is meant for the user; the parent raises it as it is."""


class RunFailed(Exception):
    """A run ended without a result; the message says why."""


def _context(function):
    """A fork server that has imported what `function` needs and run nothing.

    Its children start at once and clean.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOAD, function.__module__])
    return context


def _child(pipe, function, args, tells):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if tells:
        args = (*args, lambda *said: pipe.send(("said", said)))
    try:
        pipe.send(("row", function(*args)))
    except KeyboardInterrupt:
        os._exit(130)
    except Refused as error:
        pipe.send(("refused", error))
    except Exception:  # noqa: BLE001 - whatever it is, the parent prints it and goes on
        pipe.send(("failed", traceback.format_exc()))


def run_apart(function, *args, hear=None):
    """function(*args) in a child of its own.

    Raises RunFailed with the child's reason, or what it Refused.

    hear: where given, the child calls function(*args, tell), and hear(...) is called here with what
    it tells meanwhile.
    """
    context = _context(function)
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(
        target=_child, args=(theirs, function, args, hear is not None), daemon=True
    )
    child.start()
    theirs.close()
    try:
        while (message := ours.recv())[0] == "said":
            hear(*message[1])
        kind, result = message
    except EOFError:
        child.join()
        raise RunFailed(
            f"the process ended with status {child.exitcode} (out of memory?)"
        ) from None
    except BaseException:  # Ctrl-C, or whatever hear raises
        child.terminate()
        raise
    finally:
        child.join(timeout=10)
        ours.close()
    if kind == "refused":
        raise result
    if kind == "failed":
        raise RunFailed(result)
    return result
