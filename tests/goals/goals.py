"""The goals of correctness, of standing faults, and against hostile peers: what each promises and which commands show it.

Tests of tests/e2e that are marked `goal("G1")` belong to that goal by their marks; here are the other commands, the settings of
the long forms, and what has not been reached.
"""

from typing import NamedTuple


class Command(NamedTuple):
    """A command whose output has a figure: the last match of `figure`. Its environment is `short`, or `long` for the long form
    (None: there is none). Of a command that `adds`, whose every run is another one, the figures of all long runs are summed."""

    run: str
    figure: str
    short: dict | None = {}
    long: dict | None = None
    adds: bool = False


class Goal(NamedTuple):
    name: str
    title: str
    promise: str
    commands: tuple = ()
    # environment of its end-to-end tests in the long form
    long: dict | None = None
    # what is missing, or was done for a shorter time than promised
    short_of: str = ""


LEDGER = "cargo test --test ledger -- --nocapture"
COMMITS = "cargo test --test commits -- --nocapture"
# a million transactions in minutes, and every assertion in force
LONG_LEDGER = "cargo test --profile checked --test ledger -- --nocapture"
LONG_COMMITS = "cargo test --profile checked --test commits -- --nocapture"
SIMULATION = "cargo test --release --test sim_sessions everybody -- --nocapture"
RESULT = r"test result: ok\. (\d+ passed; \d+ failed; \d+ ignored)"
LEDGER_FIGURE = r"^\d+ (?:operations|transactions) in .*"

GOALS = (
    Goal("G1", "No foreign answers",
         "10^6 real transactions with colliding names, kills, cuts and cancels: nobody gets somebody else's answer, and memory stays "
         "within 5 %; 10^7 simulated requests with faults: everybody sees what a server of his own would have said.",
         (Command(COMMITS, LEDGER_FIGURE),
          Command(LONG_COMMITS, LEDGER_FIGURE, None, {"COMMITS": "1000000"}),
          Command(LEDGER, LEDGER_FIGURE),
          Command(LONG_LEDGER, LEDGER_FIGURE, None, {"LEDGER_OPERATIONS": "1000000"}),
          Command(SIMULATION, r"\d+ answered requests, \d+ faults", {}, {"SIM_SEEDS": "20", "SIM_STEPS": "1000000"}, adds=True))),
    Goal("G2", "Whole transactions",
         "No acknowledged commit is lost, nothing rolled back or cut appears, money is neither made nor lost, and one order of whole "
         "transactions explains what everybody saw (the books of G1 are audited for it, too).",
         long={"E2E_HISTORY": "20000"}),
    Goal("G3", "PostgreSQL's replies",
         "4,000 random batches of the extended protocol, with errors in the middle, are answered message for message as by "
         "PostgreSQL.", long={"E2E_BATCHES": "4000"}),
    Goal("G4", "Messages in pieces",
         "Cut into pieces of 1 to 50 bytes on both sides, everything works the same.", long={"E2E_BATCHES": "4000"}),
    Goal("G5", "No state leaks",
         "In transaction pooling tracked settings follow their client, and one client's statements are not another's.",
         short_of="what a client leaves behind by SET of other parameters, temporary tables, advisory locks or SQL's PREPARE reaches the "
                  "next one, as with PgBouncer, unless `server_reset_query_always` is on (see SECURITY.md)."),
    Goal("G6", "Cancels hit their query or nothing",
         "Cancel requests that are 350 ms on their way stop a query of the client they are meant for, or none.",
         long={"E2E_CANCELS": "1000"}),
    Goal("G7", "PostgreSQL dies, restarts, is away",
         "No wrong answer, nobody stuck, one error for each client that had a server; all commit again within server_login_retry + 1 s "
         "of PostgreSQL's return; clients without a server do not notice."),
    Goal("G8", "Steering under load",
         "PAUSE, RESUME, RECONNECT, reloads and changed sizes cost no transaction, and none takes 250 ms longer.",
         long={"E2E_STEERING_SECONDS": "60"}),
    Goal("G9", "Broken configuration files",
         "Five kinds of broken files at a reload: the error is logged, the old settings stay in force as a whole, nobody is dropped."),
    Goal("G10", "Hung and mute servers",
         "Clients of a hung server are told within query_timeout + 2 s, those of a mute one within query_wait_timeout + 2 s; other "
         "databases do not notice."),
    Goal("G11", "Shutdown and replacement",
         "SIGINT cuts no transaction, SIGTERM waits for all clients, kill -9 loses no acknowledged commit, a rolling restart refuses "
         "nobody."),
    Goal("G12", "Out of descriptors, out of disk",
         "Without descriptors, with a full disk or a log that cannot be opened, service goes on at less than half a core, and "
         "recovers by itself."),
    Goal("G13", "Slow readers", "Clients that do not read 200 MB cost less than 5 MB and 5 % of a core."),
    Goal("G14", "In order of arrival", "At saturation the longest wait is less than three times the median."),
    Goal("G15", "Wall clock jumps", "An hour either way ends nothing."),
    Goal("G16", "Soak",
         "72 hours of load with churn, reloads and cuts: memory grows by less than 1 MB a day, descriptors stay, no transaction fails.",
         long={"E2E_SOAK_SECONDS": "259200"},
         short_of="72 hours have not been run for this page; how many seconds were, stands above."),
    Goal("G17", "Fuzzing",
         "Every parser that reads what peers, operators or directories write has a coverage-guided target; 24 processor hours each "
         "before a release without a crash, a hang or more than 64 MB.",
         (Command("cargo test --test fuzz", RESULT),
          Command("fuzz/run all ${FUZZ_SECONDS}", r"stat::number_of_executed_units: +\d+", None, {"FUZZ_SECONDS": "86400"})),
         short_of="24 processor hours for each target have not been spent for this page; the corpus is replayed by every `cargo test`."),
    Goal("G18", "Strangers",
         "10,000 lines that never log in cost at most 4 kB each and 60 MB in all, do not delay those who work, and are dropped in time; "
         "they take no more than a quarter of max_client_conn from those who have a password.",
         long={"E2E_STRANGERS": "10000"}),
    Goal("G19", "A bug costs its own connection",
         "A panic ends the connections it concerns, is logged once and counted; the process serves on."),
    Goal("G20", "No amplification",
         "No message costs more than 100 times its bytes in memory, or holds up others."),
    Goal("G21", "Rights on the console", "Every command for every kind of user, by a table."),
    Goal("G22", "Secrets stay inside",
         "Passwords are in no log and no SHOW; core dumps are off; passwords that were replaced are wiped."),
    Goal("G23", "Supply chain",
         "cargo-deny is content, `unsafe` stands in one room with reasons, a build can be repeated byte for byte.",
         (Command("cargo test --test architecture", RESULT),
          Command("tests/goals/repeated-build", r"^byte for byte the same.*", None, {}),
          Command("cargo deny check bans licenses sources", r"bans ok.*", None, {}),
          Command("cargo deny check advisories", r"advisories ok.*", None, {})),
         short_of="Advisories need the network; whether they were looked at for this page, stands above."),
)
