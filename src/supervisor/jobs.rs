//! Slow login work on the blocking pool. Its result is a message to the worker that asked; a job that comes to nothing sends
//! one that ends what waits for it.

use crate::auth::choice::Outside;
use crate::disconnect::Disconnect;
use crate::id::WorkerId;
use crate::shared::{Job, Message};
use crate::supervisor::Supervisor;
use crate::supervisor::outside::Question;

/// What clients are told whose login a bug has ended.
const BUG: &str = "internal error";

impl Supervisor {
    pub(super) fn job(&mut self, job: Job) {
        if let Job::Password { client, outside, user, password, from } = job {
            let question = Question { client, user, password, from };
            return match outside {
                Outside::Pam => self.pam.ask(&self.shared, question),
                Outside::Ldap(options) => self.ask_directory(question, options),
            };
        }
        let Some((worker, what, instead)) = in_vain(&job) else { return };
        let shared = self.shared.clone();
        let work = move |job| {
            let result = shared.guard.run(what, || done(job)).flatten();
            shared.post(worker).send(result.unwrap_or(instead));
        };
        let Job::Client { wanted, .. } = &job else {
            tokio::task::spawn_blocking(|| work(job));
            return;
        };
        // servers must not wait for a crowd of strangers with wrong passwords, nor anybody for those of them who have gone
        let (wanted, turns) = (wanted.clone(), self.client_turns.clone());
        tokio::spawn(async move {
            let _turn = turns.acquire_owned().await;
            if wanted.strong_count() > 0 {
                let _ = tokio::task::spawn_blocking(|| work(job)).await;
            }
        });
    }
}

/// Who waits for a job, what it is for, and what ends the wait if it fails.
fn in_vain(job: &Job) -> Option<(WorkerId, String, Message)> {
    Some(match job {
        Job::Client { client, .. } => {
            let why = Disconnect::fatal(BUG);
            (client.worker, format!("the login of client {client:?}"), Message::CloseClient { client: *client, why })
        }
        Job::SystemUser { client, .. } => (
            client.worker,
            format!("the login of client {client:?}"),
            Message::SystemUser { client: *client, name: None },
        ),
        Job::Server { server, worker, .. } => {
            (*worker, format!("the login to server {server:?}"), Message::Evict { server: *server, reason: BUG.into() })
        }
        Job::Password { .. } => return None,
    })
}

/// The result of a job; passwords are judged elsewhere.
fn done(job: Job) -> Option<Message> {
    #[cfg(debug_assertions)]
    crate::worker::plant::once("job");
    Some(match job {
        Job::Client { client, derivation, .. } => Message::ClientDerived { client, keys: Box::new(derivation.run()) },
        Job::SystemUser { client, uid } => Message::SystemUser { client, name: crate::sys::user::name_of(uid) },
        Job::Server { server, derivation, .. } => {
            let keys = Box::new(derivation.run());
            Message::ServerDerived { server, derivation: Box::new(derivation), keys }
        }
        Job::Password { .. } => return None,
    })
}
