#!/usr/bin/env python3
"""Opens pages that `irepair report` made in headless Chromium, wide and narrow, light and dark, and as print.

    scripts/look_at_page.py PAGE.html… [--out DIR] [--chromium chromium] [--widths 1280 400]

Writes a screenshot of each to DIR, and fails if a page is wider than its window, says something on the console, or is
larger than 2 MB. Look at the pictures. Needs Chromium (Debian: `chromium`) and Python alone.
"""
import argparse, pathlib, re, subprocess, sys, tempfile, time

# Headless Chromium makes no window narrower than 500 pixels, so the page is put into a frame of the width that is asked for.
FRAME = """<!doctype html><meta charset="utf-8"><style>body{{margin:0}}iframe{{border:0;display:block}}</style>
<iframe id="page" width="{width}" height="{height}" src="{page}"></iframe>
<script>onload = () => {{ const root = document.getElementById("page").contentDocument.documentElement;
document.title = `${{root.scrollWidth}} of ${{root.clientWidth}}, ${{root.scrollHeight}} high`; }}</script>"""
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files",
         "--enable-logging=stderr", "--v=0", "--virtual-time-budget=4000"]


def chromium(args, frame, more):
    done = subprocess.run([args.chromium, *FLAGS, *more, frame.as_uri()], capture_output=True, text=True, timeout=120)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, console


def look(args, page, width, folder):
    frame = pathlib.Path(folder) / "frame.html"
    height = 1000

    def write():
        frame.write_text(FRAME.format(width=width, height=height, page=page.as_uri()))

    write()
    dom, console = chromium(args, frame, ["--dump-dom"])
    found = re.search(r"<title>(\d+) of (\d+), (\d+) high</title>", dom)
    if not found:
        return ["it could not be measured"]
    content, window, height = map(int, found.groups())
    problems = [f"console: {line}" for line in console]
    if content > window:
        problems.append(f"{content} pixels wide in a window of {window}")
    height = min(height, 12000)
    write()
    for name, more in [("light", []), ("dark", ["--blink-settings=preferredColorScheme=0"])]:
        picture = args.out / f"{page.stem}-{width}-{name}.png"
        chromium(args, frame, [*more, f"--window-size={max(width, 500)},{height}", f"--screenshot={picture}"])
        if not picture.exists():
            problems.append(f"no picture {picture}")
    return problems


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("pages", nargs="+", type=pathlib.Path)
    ap.add_argument("--out", type=pathlib.Path, default=pathlib.Path("looked"))
    ap.add_argument("--chromium", default="chromium")
    ap.add_argument("--widths", nargs="+", type=int, default=[1280, 400])
    args = ap.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.out = args.out.resolve()
    failed = False
    for page in args.pages:
        page = page.resolve()
        size = page.stat().st_size
        problems = [f"{size} bytes"] if size > 2_000_000 else []
        with tempfile.TemporaryDirectory() as folder:
            for width in args.widths:
                problems += [f"{width}: {problem}" for problem in look(args, page, width, folder)]
            printed = args.out / f"{page.stem}.pdf"
            chromium(args, page, [f"--print-to-pdf={printed}"])
            if not printed.exists():
                problems.append("it could not be printed")
        print(f"{page}: {size} bytes; " + ("; ".join(problems) if problems else "no overflow, nothing on the console"))
        failed |= bool(problems)
    sys.exit(failed)


if __name__ == "__main__":
    main()
