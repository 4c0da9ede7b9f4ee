"""What FSDP2 is refused by name, in two processes."""


def run(rank, world):
    return {}
