"""Write the man page and the completions of bash, zsh and fish from the parser: scripts/pages.py SHARE.

SHARE is a directory such as /usr/local/share. Run it with the Python of a venv that has the project.
"""

import argparse
import re
import sys
from pathlib import Path

import supervisord_llm
from supervisord_llm.cli.main import parser

NAME = "llm-supervisor"
FILES = f"""\
/etc/{NAME}/config.toml, /etc/{NAME}/conf.d/*.toml
The configuration.
/etc/{NAME}/{NAME}.env
Secrets, as NAME=value.
/var/lib/{NAME}
Venvs, weights and logs.
/run/{NAME}/control.sock
How the commands reach the daemon.
"""


def main() -> int:
    """Exit code 0 when written."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("share", type=Path, metavar="SHARE")
    share = arguments.parse_args().share
    root = parser()
    for name, text in {
        f"man/man1/{NAME}.1": man(root),
        f"bash-completion/completions/{NAME}": bash(root),
        f"zsh/site-functions/_{NAME}": zsh(root),
        f"fish/vendor_completions.d/{NAME}.fish": fish(root),
    }.items():
        path = share / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


def commands(root: argparse.ArgumentParser) -> dict[str, tuple[str, argparse.ArgumentParser]]:
    """Name -> what it does, its parser."""
    group = next(each for each in root._actions if isinstance(each, argparse._SubParsersAction))
    summaries = {choice.dest: choice.help or "" for choice in group._choices_actions}
    return {name: (summaries[name], each) for name, each in group.choices.items()}


def options(command: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in command._actions if action.option_strings]


def flags(command: argparse.ArgumentParser) -> str:
    """Every option of a command, in all its spellings."""
    return " ".join(flag for action in options(command) for flag in action.option_strings)


# --- man ----------------------------------------------------------------------------------------------------


def man(root: argparse.ArgumentParser) -> str:
    """The page in the man macros, section 1."""
    version = supervisord_llm.__version__
    lines = [f'.TH {NAME.upper()} 1 "" "{NAME} {version}" "User Commands"', ".SH NAME"]
    lines += [f"{NAME} \\- {roff((root.description or '').rstrip('.'))}", ".SH SYNOPSIS"]
    lines += [f".B {roff(NAME)}", r"[\fB\-\-config\fR \fIPATH\fR] \fICOMMAND\fR ...", ".SH COMMANDS"]
    for name, (summary, command) in commands(root).items():
        usage = re.sub(r"\[-h\] |\[--config PATH\] ?", "", command.format_usage().removeprefix("usage: "))
        lines += [".TP", f".B {roff(' '.join(usage.split()).removeprefix(f'{NAME} ') or name)}"]
        lines += [roff(f"{summary[0].upper()}{summary[1:]}.")]
        for action in options(command):
            if action.dest not in ("help", "config"):
                lines += [
                    ".br",
                    f"\\fB{roff(', '.join(action.option_strings))}\\fR: {roff(described(action))}.",
                ]
    lines += [".SH FILES"]
    for path, what in zip(*[iter(FILES.splitlines())] * 2, strict=True):
        lines += [".TP", f".I {roff(path)}", roff(what)]
    lines += [".SH EXAMPLES AND EXIT STATUS", ".nf", *map(roff, (root.epilog or "").splitlines()), ".fi"]
    lines += [".SH SEE ALSO", roff("systemctl(1), journalctl(1)")]
    return "\n".join(lines) + "\n"


def roff(text: str) -> str:
    """Text as roff reads it."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def described(action: argparse.Action) -> str:
    return (action.help or "") % {"default": action.default, "prog": NAME}


# --- completions --------------------------------------------------------------------------------------------


def bash(root: argparse.ArgumentParser) -> str:
    """Commands, their options, and files after --config."""
    cases = "\n".join(
        f'        {name}) words="{flags(command)}" ;;' for name, (_, command) in commands(root).items()
    )
    return f"""\
# Made by scripts/pages.py.
_llm_supervisor() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} words="{flags(root)} {" ".join(commands(root))}" each
    if [ "${{COMP_WORDS[COMP_CWORD - 1]}}" = --config ]; then
        COMPREPLY=($(compgen -f -- "$word"))
        return
    fi
    for each in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case $each in
{cases}
        esac
    done
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -F _llm_supervisor {NAME}
"""


def zsh(root: argparse.ArgumentParser) -> str:
    """By way of bash's, which zsh can run."""
    body = bash(root).partition("\n")[2]
    return f"#compdef {NAME}\nautoload -U +X bashcompinit && bashcompinit\n{body}"


def fish(root: argparse.ArgumentParser) -> str:
    """Commands with what they do, and the options of each."""
    lines = ["# Made by scripts/pages.py.", f"complete -c {NAME} -l config -r -d 'the configuration to use'"]
    for name, (summary, command) in commands(root).items():
        quoted = summary.replace("'", "\\'")
        lines += [f"complete -c {NAME} -n __fish_use_subcommand -f -a {name} -d '{quoted}'"]
        for action in options(command):
            spellings = [
                f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
                for flag in action.option_strings
            ]
            if action.dest not in ("help", "config"):
                condition = f"'__fish_seen_subcommand_from {name}'"
                lines += [f"complete -c {NAME} -n {condition} {' '.join(spellings)}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
