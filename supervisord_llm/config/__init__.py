"""What the TOML says, as frozen values, or every mistake in it with its file and line.

load.py           the way in, and the only I/O beside write.py, credentials.py and zone.py
document.py       several files as one; positions.py: the line of each key
expand.py         writes out what a model extends and its replicas, before anything is read
read.py           TOML to values by the description in keys/, which is made of kinds.py and values.py
parse.py          those values to a Config (model.py), or to problems (problem.py)

What takes more than a few lines to parse
routes.py         [routes]; schedule.py: [schedule]; peers.py: [peers] and the models that are found there
adapters.py       models with `adapter_of`
commands.py       models of engine = "command"; template.py: words with placeholders
remotes.py        models of engine = "remote"
engine_paths.py   a method and path that `request.allow` may open
credentials.py    where keys come from; zone.py: the host's own time zone

What follows from it
signature.py      what makes two engines the same process
changes.py        what a reload changes, and what it cannot
schema.py         the JSON Schema; reference.py: the page of every setting
write.py          writes a file

keys/             every setting there is
checks/           what must hold between settings
"""
