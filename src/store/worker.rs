//! One thread for work that may block: redb's write transactions on one, long reads on another.
//!
//! Promises order (first in, first done), a bounded queue, and that the executor only ever awaits.

use std::io;
use std::thread;

use smol::channel::{Receiver, Sender, bounded};

type Job = Box<dyn FnOnce() + Send>;

/// Jobs that may wait for their turn. The committer has one at a time; reads are few, since HTTP connections are.
const QUEUE: usize = 64;

/// A thread that runs what it is given, in order. It ends when the worker is dropped and its queue is empty.
#[derive(Debug)]
pub struct Worker {
    jobs: Sender<Job>,
}

/// The worker's thread is gone. It ends only with the program, or when a job panicked.
#[derive(Debug)]
pub struct Gone;

impl Worker {
    /// Starts the thread under `name`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(name: &str) -> io::Result<Self> {
        let (jobs, queue): (Sender<Job>, Receiver<Job>) = bounded(QUEUE);
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            while let Ok(job) = queue.recv_blocking() {
                job();
            }
        })?;
        Ok(Self { jobs })
    }

    /// What `job` returns, once it had its turn.
    ///
    /// # Errors
    /// [`Gone`] when the thread is.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, Gone> {
        let (answer, reply) = bounded(1);
        let job: Job = Box::new(move || {
            let _ = answer.try_send(job()); // nobody waits any more: the result has no taker
        });
        self.jobs.send(job).await.map_err(|_| Gone)?;
        reply.recv().await.map_err(|_| Gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_run_in_order_on_one_thread() {
        let worker = Worker::start("test").unwrap();
        let ids: Vec<_> = (0..3).map(|_| smol::block_on(worker.run(|| thread::current().id())).unwrap()).collect();
        assert!(ids.iter().all(|id| *id == ids[0] && *id != thread::current().id()));
    }
}
