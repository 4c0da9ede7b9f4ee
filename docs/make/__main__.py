"""`python -m docs.make`: the pages to build/docs, the site to build/site, every link looked at."""

import subprocess
import sys

from docs.make import links, pages


def main() -> int:
    pages.write(pages.STAGED)
    broken = links.broken_in_pages(pages.STAGED)
    if not broken:
        done = subprocess.run([sys.executable, "-m", "zensical", "build", "--clean", "--strict"],
                              cwd=pages.ROOT, check=False)  # fmt: skip
        if done.returncode:
            return done.returncode
        broken = links.broken_in_site(pages.SITE)
    for each in broken:
        print(each)
    if not broken:
        print(f"the site is in {pages.SITE.relative_to(pages.ROOT)}: open index.html")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
