"""What the operating system says of the processor, for rules that depend on who made it."""

CPU_INFO = "/proc/cpuinfo"
BYTES_OF_ONE_CORE = 8192  # more than its entry takes


def processor(path: str = CPU_INFO) -> dict[str, str]:
    """Linux's entry of the first core, {"vendor_id": …, "flags": …, …}; empty elsewhere."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(BYTES_OF_ONE_CORE).splitlines()
    except OSError:
        return {}
    facts: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    return facts


def is_amd_with_avx512(facts: dict[str, str]) -> bool:
    return facts.get("vendor_id") == "AuthenticAMD" and "avx512f" in facts.get("flags", "").split()
