#!/usr/bin/env python3
"""The licenses of all crates that the binary is made of, as text on stdout.

    python scripts/make_licenses.py [--features cuda] > LICENSES-OF-CRATES.txt

Crates come from `cargo metadata --locked`; those for building and testing alone are left out. Of each: name,
version, license, where it is from, and the license files that it carries. A crate without a license is an error.
"""
import argparse
import json
import pathlib
import subprocess
import sys

NAMES = ("license", "licence", "copying", "notice", "unlicense")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--features", default="")
    args = ap.parse_args()
    host = next(
        line.split()[1] for line in subprocess.check_output(["rustc", "-vV"], text=True).splitlines() if line.startswith("host")
    )
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", host]
    metadata = json.loads(subprocess.check_output(command + ["--features", args.features], text=True))
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}

    root = metadata["resolve"]["root"]
    found, next_ones = set(), [root]
    while next_ones:
        node = nodes[next_ones.pop()]
        for dependency in node["deps"]:
            normal = any(kind["kind"] is None for kind in dependency["dep_kinds"])
            if normal and dependency["pkg"] not in found:
                found.add(dependency["pkg"])
                next_ones.append(dependency["pkg"])

    texts = {}
    crates = sorted((packages[package] for package in found), key=lambda p: (p["name"], p["version"]))
    print(f"irepair is made of these {len(crates)} crates.\n")
    for crate in crates:
        license = crate["license"] or (crate["license_file"] and f"see its {crate['license_file']}")
        if not license:
            sys.exit(f"{crate['name']} {crate['version']} names no license")
        folder = pathlib.Path(crate["manifest_path"]).parent
        files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name.lower().startswith(NAMES)]
        numbers = []
        for path in files:
            text = path.read_text(encoding="utf-8", errors="replace").strip()
            numbers.append(texts.setdefault(text, len(texts) + 1))
        which = f"; texts {', '.join(map(str, sorted(set(numbers))))}" if numbers else "; it carries no text"
        print(f"{crate['name']} {crate['version']}: {license}; {crate['repository'] or 'no address'}{which}")
    for text, number in texts.items():
        print(f"\n{'=' * 80}\nText {number}\n\n{text}")


if __name__ == "__main__":
    main()
