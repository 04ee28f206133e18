//! The whole exposition.

use std::collections::BTreeSet;

use super::picture::PoolFigures;
use super::*;
use crate::admin::snapshot::{DatabaseRow, PoolRow, StatsRow};

fn picture() -> Picture {
    let pool = PoolFigures {
        row: PoolRow { database: "d\"b".to_owned(), user: "u".to_owned(), cl_waiting: 2, ..PoolRow::default() },
        causes: [2, 0, 0, 0, 0, 0, 0, 0, 0],
        ..PoolFigures::default()
    };
    Picture {
        pools: vec![pool],
        databases: vec![DatabaseRow { name: "db".to_owned(), port: 5432, ..DatabaseRow::default() }],
        stats: vec![StatsRow { database: "db".to_owned(), ..StatsRow::default() }],
        ..Picture::default()
    }
}

#[test]
fn every_family_is_described_once_and_before_its_samples() {
    for format in [Format::Prometheus, Format::OpenMetrics] {
        let text = render(&picture(), format);
        let mut described = BTreeSet::new();
        let mut family = "";
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                family = rest.split(' ').next().expect("a name");
                assert!(described.insert(family), "{family} twice");
            } else if !line.starts_with('#') {
                assert!(line.starts_with(family), "{line} belongs to {family}");
            }
        }
        assert!(described.len() > 60, "{} families", described.len());
        assert_eq!(text.ends_with("# EOF\n"), format == Format::OpenMetrics);
    }
}

#[test]
fn a_pool_has_all_histograms_before_anything_happened_and_the_console_none() {
    let mut picture = picture();
    picture.pools[0].times = Some(Box::default());
    picture.pools.push(PoolFigures::default());
    let text = render(&picture, Format::Prometheus);
    for name in ["client_wait", "query", "transaction", "server_login", "client_login"] {
        let count = format!("pgbouncer_{name}_seconds_count");
        let found: Vec<_> = text.lines().filter(|line| line.starts_with(&count)).collect();
        assert_eq!(found, [format!("{count}{{database=\"d\\\"b\",user=\"u\"}} 0")]);
    }
}

#[test]
fn causes_add_up_to_the_waiting_clients() {
    let text = render(&picture(), Format::Prometheus);
    let line = "pgbouncer_pools_client_waiting_by_cause{database=\"d\\\"b\",user=\"u\",cause=\"pool_full\"} 2\n";
    assert!(text.contains(line), "{text}");
    assert!(text.contains("pgbouncer_databases_pool_size{name=\"db\",host=\"\",port=\"5432\",database=\"\",force_user=\"\",pool_mode=\"\"} 0\n"));
}
