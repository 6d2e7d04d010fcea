"""Tables of medians, spreads and ratios, and a chart."""

import json
from html import escape
from statistics import median

OURS = "groupcache-proxy"


def ours_of(result):
    """The label of this project's server in a case; the first where there are several."""
    return next((label for label in result["rounds"] if label.startswith(OURS)), None)


def rates(rounds):
    return [measured["rate"] for measured in rounds]


def ratios(result, label):
    """Ours to theirs, by round."""
    ours = result["rounds"].get(ours_of(result), [])
    theirs = result["rounds"][label]
    return [mine["rate"] / its["rate"] for mine, its in zip(ours, theirs) if its["rate"]]


def cost(rounds):
    """Median processor time of a request in microseconds, in user space and in the kernel."""
    parts = [[measured[part] for measured in rounds if part in measured] for part in ("user_us", "system_us")]
    return tuple(map(median, parts)) if all(parts) else None


def figure(value):
    if value >= 10000:
        return f"{value / 1000:,.1f} k"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def case_table(result):
    """One case in Markdown."""
    ours = ours_of(result)
    lines = [
        f"### {result['title']} (`{result['case']}`)",
        "",
        f"| server | {result['unit']} | least to most | ours : theirs | rounds we lead | processor µs each (user + kernel) | theirs : ours | remarks |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for label, rounds in result["rounds"].items():
        values = rates(rounds)
        compared = [] if label == ours else ratios(result, label)
        leads = sum(ratio > 1 if result["higher_is_better"] else ratio < 1 for ratio in compared)
        spent, ours_spent = cost(rounds), cost(result["rounds"].get(ours, []))
        processor = f"{spent[0]:.1f} + {spent[1]:.1f}" if spent else ""
        saved = f"{sum(spent) / sum(ours_spent):.2f}" if compared and spent and ours_spent and sum(ours_spent) else ""
        errors = sum(measured["errors"] for measured in rounds)
        notes = [f"{errors} errors"] if errors else []
        typical = sorted(rounds, key=lambda measured: measured["rate"])[len(rounds) // 2]
        notes += [typical["note"]] if "note" in typical else []
        lines.append(
            f"| {label} | {figure(median(values))} | {figure(min(values))} to {figure(max(values))} "
            f"| {f'{median(compared):.2f}' if compared else ''} | {f'{leads} of {len(compared)}' if compared else ''} "
            f"| {processor} | {saved} | {'; '.join(notes)} |"
        )
    for label, reason in result["refusals"].items():
        lines.append(f"| {label} | | | | | | | takes no part: {reason} |")
    return "\n".join(lines)


def write(results, machine, folder, name):
    """`folder/name.json` with every measurement, `.md` with the tables, `.svg` with the chart."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    versions = ", ".join(f"{program}: {version}" for program, version in machine["versions"].items())
    head = (
        f"# Side by side, {machine['date']}\n\n{machine['processor']}, {machine['cores']} cores, Linux {machine['kernel']}, commit {machine['commit']}; "
        f"{machine['rounds']} rounds in turn of {machine['seconds']} s, 64 keep-alive connections, each server on one core, the load on another.\n\n"
        f"{versions}\n\n"
    )
    (folder / f"{name}.md").write_text(head + "\n\n".join(map(case_table, results)) + "\n")
    drawn = [result for result in results if result["unit"] == "requests/s"]
    if drawn:
        (folder / f"{name}.svg").write_text(chart(drawn, machine))
    print(f"\nwritten: {folder / name}.json, .md" + (", .svg" if drawn else ""))


def chart(results, machine):
    """Bars by case, in thousands per second; each case has a scale of its own."""
    width, label_width, value_width, bar_height, gap = 760, 190, 110, 16, 4
    parts, top = [], 56
    for result in results:
        bars = sorted(((label, median(rates(rounds))) for label, rounds in result["rounds"].items()), key=lambda bar: -bar[1])
        longest = max(value for _, value in bars) or 1
        top += 18
        parts.append(f'<text class="title" x="12" y="{top}">{escape(result["title"])}</text>')
        top += 8
        for label, value in bars:
            length = value / longest * (width - label_width - value_width)
            kind = "ours" if label.startswith(OURS) else "ceiling" if "return" in label else "theirs"
            middle = top + bar_height - 4
            parts.append(f'<text x="{label_width - 8}" y="{middle}" text-anchor="end">{escape(label)}</text>')
            parts.append(f'<rect class="{kind}" x="{label_width}" y="{top}" width="{max(1.0, length):.1f}" height="{bar_height}" rx="2"/>')
            parts.append(f'<text x="{label_width + length + 6:.1f}" y="{middle}">{figure(value)}</text>')
            top += bar_height + gap
        top += 10
    subtitle = f"requests per second on one core, median of {machine['rounds']} rounds in turn, {machine['date'][:10]}, {machine['processor']}"
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top + 8}" width="{width}" height="{top + 8}" role="img" aria-label="{escape(subtitle)}">
<style>
text {{ font: 12px system-ui, sans-serif; fill: #24292f }} .title {{ font-weight: 600 }} .head {{ font-size: 15px; font-weight: 600 }}
.small {{ font-size: 11px; fill: #57606a }} .back {{ fill: #ffffff }} .ours {{ fill: #1f6feb }} .theirs {{ fill: #afb8c1 }} .ceiling {{ fill: #d8dee4 }}
@media (prefers-color-scheme: dark) {{ text {{ fill: #e6edf3 }} .small {{ fill: #8d96a0 }} .back {{ fill: #0d1117 }} .theirs {{ fill: #57606a }} .ceiling {{ fill: #30363d }} }}
</style>
<rect class="back" width="100%" height="100%"/>
<text class="head" x="12" y="24">Side by side</text>
<text class="small" x="12" y="42">{escape(subtitle)}</text>
{chr(10).join(parts)}
</svg>
"""
