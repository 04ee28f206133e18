//! The old process's part of an online restart: descriptors and state for the successor at its console.

use std::os::fd::RawFd;

use tokio::sync::oneshot;

use crate::admin::handover::{StateKind, StateRow, VERSION};
use crate::admin::snapshot::FdRow;
use crate::admin::{handover, reply, show};
use crate::id::ClientRef;
use crate::relay::handover::{put_reply, put_server, statements_of};
use crate::shared::{HandedOver, Message, Patience};
use crate::supervisor::Supervisor;

impl Supervisor {
    /// SHOW FDS for a process that may take the descriptors.
    pub(super) fn send_descriptors(&self, client: ClientRef, rows: &[FdRow]) {
        let mut pieces: Vec<(Vec<u8>, Option<RawFd>)> = Vec::with_capacity(rows.len() + 2);
        let piece = |fill: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            fill(&mut out);
            out
        };
        pieces.push((piece(&show::fds_head), None));
        pieces.extend(rows.iter().map(|row| (piece(&|out| show::fds_row(out, row)), Some(row.fd))));
        let end = |out: &mut Vec<u8>| {
            reply::complete(out, "SHOW");
            reply::ready(out);
        };
        pieces.push((piece(&end), None));
        self.shared.post(client.worker).send(Message::ConsolePieces { client, pieces });
    }

    /// HANDOVER: before a suspension it announces a successor that will understand the state, afterwards it asks for it.
    pub(super) async fn hand_over(&mut self, client: ClientRef) -> Vec<u8> {
        let version = StateRow { kind: StateKind::Version, number: VERSION, value: Vec::new() };
        let mut rows = vec![version];
        if self.is_suspended() {
            rows.extend(self.state_rows().await);
        } else {
            self.successor = Some(client);
        }
        let mut out = Vec::new();
        handover::state(&mut out, &rows);
        out
    }

    /// How long a SUSPEND of this console waits for what.
    pub(super) fn patience_for(&self, client: ClientRef) -> Patience {
        if self.successor == Some(client) { Patience::Short } else { Patience::Plain }
    }

    async fn state_rows(&self) -> Vec<StateRow> {
        let mut all = HandedOver::default();
        for post in &self.shared.posts {
            let (reply, answer) = oneshot::channel();
            post.send(Message::HandOver(reply));
            let part = answer.await.unwrap_or_default();
            all.rows.extend(part.rows);
            all.statements.extend(part.statements);
        }
        let names = &self.shared.names;
        let broker = self.shared.broker.lock();
        broker.pools.server_rows(|row| {
            let Some(conn) = row.conn else { return };
            let number = i64::from(conn.stream.fd());
            all.rows.push(StateRow { kind: StateKind::Server, number, value: put_server(&conn.side, names) });
            statements_of(None, Some(&conn.side), &mut all.statements);
        });
        for row in broker.pools.pool_rows() {
            if let Some(reply) = broker.pools.login_reply(row.pool) {
                let value = put_reply(&row.database, &row.user, &reply.untracked, &reply.tracked, names);
                all.rows.push(StateRow { kind: StateKind::Pool, number: 0, value });
            }
        }
        drop(broker);
        let statement = |(number, tail): (u64, Vec<u8>)| StateRow {
            kind: StateKind::Statement,
            number: i64::try_from(number).unwrap_or(i64::MAX),
            value: tail,
        };
        let statements = all.statements.values().map(|known| (known.number, known.tail.to_vec()));
        all.rows.extend(statements.map(statement).collect::<Vec<_>>());
        all.rows
    }
}
