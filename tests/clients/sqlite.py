"""A load of SQLite whose every commit is waited for, and the check of what is left of it.

load PATH MODE COMMITS   for each line that comes in: one transaction, then a line that says how many rows there are
check PATH               integrity, and the number of rows if they are exactly those of some number of commits
"""
import hashlib
import os
import sqlite3
import sys

ROWS = 3  # of one transaction


def row(number):
    return hashlib.sha256(b"row %d" % number).hexdigest() * (1 + number * 7 % 40)


def load(path, mode, commits):
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode = %s" % mode)
    # With a rollback journal FULL does not sync the folder after the journal is gone: a commit may be undone.
    database.execute("PRAGMA synchronous = %s" % ("FULL" if mode == "wal" else "EXTRA"))
    database.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, data TEXT)")
    database.execute("CREATE TABLE total (count INTEGER)")
    database.execute("INSERT INTO total VALUES (0)")
    for commit in range(commits):
        sys.stdin.readline()
        first = commit * ROWS
        database.execute("BEGIN IMMEDIATE")
        for number in range(first, first + ROWS):
            database.execute("INSERT INTO rows VALUES (?, ?)", (number, row(number)))
        database.execute("UPDATE total SET count = ?", (first + ROWS,))
        database.execute("COMMIT")
        print(first + ROWS, flush=True)
    sys.stdin.readline()
    database.close()


def check(path):
    if not os.path.exists(path):
        print(0)
        return
    database = sqlite3.connect(path)
    said = database.execute("PRAGMA integrity_check").fetchone()[0]
    assert said == "ok", said
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    count = 0
    if "total" in tables:
        totals = [count for (count,) in database.execute("SELECT count FROM total")]
        count = totals[0] if totals else 0
    rows = list(database.execute("SELECT number, data FROM rows ORDER BY number")) if "rows" in tables else []
    assert count % ROWS == 0, "a part of a transaction: %d rows" % count
    assert rows == [(number, row(number)) for number in range(count)], "rows are not the first %d" % count
    print(count)


if sys.argv[1] == "load":
    load(sys.argv[2], sys.argv[3], int(sys.argv[4]))
else:
    check(sys.argv[2])
