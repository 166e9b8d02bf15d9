//! The rules of the scenario format, one by one, where the shipped scenarios do not show them. What each line must report
//! stands in the scenario itself; the model judges them as well where it knows of everything that happens.

use convert::options::{Merge, Options};
use convert::report::{Outcome, Resources};

use crate::compare::{disagreements, read, run};

/// Runs `text`, in which every expectation must be met, both ways of merging.
fn rule(text: &str) {
    let scenario = read(text);
    for merge in [Merge::Eager, Merge::Lazy] {
        let outcome = run(&scenario, &Options { merge, ..Options::default() });
        assert!(outcome.unmet.is_empty(), "{text}\n{:?}", outcome.unmet);
        assert!(outcome.held(), "{text}\n{:?}", outcome.violations);
    }
}

/// The same, and the model agrees about everything.
fn judged(text: &str) {
    rule(text);
    judged_eager(text);
}

/// As the model says, with all expectations met: for needs that depend on what was merged before.
fn judged_eager(text: &str) {
    let wrong = disagreements(&read(text), &Options::default());
    assert!(wrong.is_empty(), "{text}\n{}", wrong.join("\n"));
}

#[test]
fn what_does_not_fit_the_state_is_refused() {
    judged(
        "backing 2M\nram 0 4M\nfill 0 4K\nexpect refused\nhostfill 0 4K\nexpect refused\npin 0 4K\nexpect refused\n\
         accept 0 4M\nhostfill 0 4K\nexpect refused\nshare 0 8K\naccept 0 4M\nexpect refused\ntouch 0 4M\n\
         expect refused\nfill 0 4M\nexpect ok\nhostfill 0 8K\nexpect ok\nhostfill 0 12K\nexpect refused\n\
         pin 0 12K\nexpect refused\nunpin 0 4K\nexpect refused\npin 0 4K\nunpin 0 8K\nexpect refused\n\
         unpin 0 4K\nexpect ok\ncheck\n",
    );
}

#[test]
fn what_is_done_already_is_a_noop() {
    judged(
        "backing 2M\nram 0 4M\nunshare 0 4K\nexpect noop\naccept 0 4M\naccept 0 4M\nexpect noop\nshare 0 8K\n\
         share 4K 4K\nexpect noop\nshare 4K 8K\nexpect ok\nunshare 0 4M\nexpect ok\nunshare 0 4M\nexpect noop\n\
         poison 0\npoison 0\nexpect noop\nshare 0 4K\nexpect noop\nfill 0 4K\nexpect noop\ntouch 8K 4K\nexpect ok\n\
         check\nmerge\n",
    );
}

#[test]
fn pins_are_counted_and_named() {
    judged(
        "ram 0 1G\naccept 0 1G\nshare 0 64K\npin 16K 8K\npin 20K 4K\nunshare 0 64K\nexpect again at=16K\n\
         unpin 16K 8K\nunshare 0 64K\nexpect again at=20K\nunpin 20K 4K\nunshare 0 64K\nexpect ok\nmerge\n",
    );
}

/// A reference on a page that is lost stands in nobody's way: the page is skipped.
#[test]
fn a_pinned_page_can_be_lost() {
    judged(
        "ram 0 1G\naccept 0 1G\nshare 0 16K\npin 4K 4K\npoison 4K\nexpect ok\nunshare 0 16K\nexpect ok\ncheck\nmerge\n",
    );
}

/// Content of pages that were shared before survives a share of more; unshare accepts the whole range.
#[test]
fn mixed_ranges() {
    judged(
        "backing 2M\nram 0 4M\naccept 0 1M\nshare 64K 4K\nhostfill 64K 4K\nshare 0 128K\nexpect ok\ncheck\n\
         punch 1020K 8K\nexpect ok\nfill 1020K 4K\nexpect refused\nunshare 0 2M\nexpect ok\nfill 0 2M\nexpect ok\n\
         check\nmerge\n",
    );
}

#[test]
fn memory_that_returns_unaccepted_waits() {
    judged(
        "ram 0 1G\naccept 0 1G\nshare 0 4M\nunshare 0 4M accept=no\nexpect ok\nfill 0 4K\nexpect refused\n\
         touch 0 4M\nexpect ok\naccept 2M 4K\nexpect ok\nfill 2M 4K\nexpect ok\naccept 0 4M\nexpect ok\ncheck\nmerge\n",
    );
}

/// A leaf that the guest has accepted is not split when it accepts memory beside it.
#[test]
fn accepted_neighbours_stay_whole() {
    judged(
        "ram 0 1G\naccept 0 2M\naccept 2044K 8K level=4K\nexpect ok\naccept 0 4M level=4K\nexpect ok\nmerge\n",
    );
    judged("ram 0 1G\naccept 4M 2M\ntouch 0 4M\naccept 0 6M level=4K\nexpect ok\nmerge\n");
}

/// Exactly what a conversion needs is enough: 518 pages and two tables with their mirrors, 73 nodes aside.
#[test]
fn one_page_less_than_needed_is_too_little() {
    let start = "ram 0 1G\naccept 0 1G\n";
    judged_eager(&format!(
        "{start}memory 521\nshare 1M 4K\nexpect again at=1M\ncheck\nmemory unlimited\nmerge\n"
    ));
    judged_eager(&format!(
        "{start}memory 522\nshare 1M 4K\nexpect ok\nshare 2M 4K\nexpect again at=2M\nmerge\n"
    ));
    judged_eager(
        "memory 0\nram 0 1G\naccept 0 4M\nexpect again at=0\nmemory 3\naccept 0 4K\nexpect again\nmerge\n",
    );
}

/// Isolation takes from a standing reservation. Without one the error is recorded, nobody touches the page, and `merge`
/// isolates it.
#[test]
fn errors_wait_for_memory() {
    rule(
        "ram 0 1G\naccept 0 1G\nfill 0 8M\nmemory 0\npoison 0\nexpect ok\npoison 4M\nexpect again at=4M\ncheck\nexpect ok\n\
         poison 6M\nexpect again at=6M\nfill 4M 8K\nexpect again at=4M\nmemory 9\nshare 4M 4M\nexpect again at=6M\n\
         merge\nexpect again at=6M\ncheck\nmemory unlimited\nmerge\nexpect ok\npoison 6M\nexpect noop\n\
         fill 4M 4M\nexpect ok\ncheck\nmerge\n",
    );
}

/// After a consumed error everything is refused, and what is shared can still be read.
#[test]
fn a_consumed_error_is_the_end() {
    judged(
        "ram 0 1G\naccept 0 1G\nshare 0 8K\nhostfill 0 8K\npoison 4M consumed\nexpect ok\nshare 2M 4K\nexpect refused\n\
         fill 0 4K\nexpect refused\npoison 8M\nexpect refused\ncheck\nexpect refused\nmemory 7\nmerge\nexpect refused\n",
    );
    judged("backing 4K\nram 0 64K\npoison 0 consumed\naccept 0 64K\nexpect refused\n");
}

/// Lost memory in an image is skipped, and the TD runs.
#[test]
fn images_with_obstacles() {
    judged("ram 0 1G\npoison 4K\nimage 4K 4K\nexpect noop\naccept 0 4M\nexpect ok\nmerge\n");
    judged("ram 0 1G\nshare 0 4K\nimage 0 8K\nexpect refused\nimage 8K 8K\naccept 4K 4M\nexpect ok\nmerge\n");
    judged(
        "ram 0 1G\nimage 0 2M\npoison 8K\npunch 64K 4K\nshare 0 4K\nexpect ok\naccept 4K 4M\nexpect ok\nmerge\n",
    );
}

/// RAM that comes later, or a conversion that was not carried out, is no part of the balance.
#[test]
fn the_balance_begins_with_the_first_conversion() {
    for text in [
        "ram 0 1G\nunshare 0 4K\nexpect noop\naccept 0 1G\nshare 0 4K\nram 1G 1G\nunshare 0 4K\n",
        "ram 0 1G\nmemory 1\nshare 0 4K\nexpect again\nmemory unlimited\naccept 0 1G\nshare 0 4K\nunshare 0 4K\n",
    ] {
        judged(text);
        let outcome = run(&read(text), &Options::default());
        assert_eq!(outcome.report.totals.pool_balance, Resources::default(), "{text}");
    }
}

/// Ranges over the edge of a block and of a region: all or nothing.
#[test]
fn ranges_over_blocks() {
    judged(
        "backing 2M\nram 0 4M\nram 4M 2M\naccept 0 6M\nshare 1M 4M\npin 4M 4K\nunshare 1M 4M\nexpect again at=4M\n\
         check\nunpin 4M 4K\nunshare 1M 4M\nexpect ok\ncheck\nmerge\n",
    );
}

/// What an operation met on its way must not change what it reports to have done nothing.
#[test]
fn refused_operations_cost_nothing() {
    let scenario =
        read("ram 0 1G\naccept 0 1G\nmemory 100\nshare 0 4M\nexpect again at=0\nfill 0 4M\nexpect ok\n");
    let outcome = run(&scenario, &Options::default());
    assert!(outcome.held(), "{:?}", outcome.violations);
    let again = outcome.report.ops.iter().find(|op| op.result == Outcome::Again).unwrap();
    assert_eq!((again.used, again.released, again.retained), Default::default());
    assert_eq!((again.demotes, again.seamcalls), (0, 0));
}
