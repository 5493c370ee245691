//! Threads of a simulated world: each belongs to the process of the one that starts it.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use std::thread::{available_parallelism, panicking};

use super::world::{self, TaskHandle, What};

type Result<T> = std::result::Result<T, Box<dyn Any + Send>>;

#[derive(Default)]
pub struct Builder {
    name: Option<String>,
}

impl Builder {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn name(mut self, name: String) -> Self {
        self.name = Some(name);
        self
    }

    /// # Errors
    ///
    /// The world says that there is no thread to be had.
    pub fn spawn<T: Send + 'static>(self, body: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
        world::step();
        let world = world::current();
        world.may_fail("clone")?;
        let result = Arc::new(Mutex::new(None));
        let place = result.clone();
        let name = self.name.unwrap_or_else(|| "thread".into());
        let (id, end) = world.start(world.process(), name, move || {
            let done = catch_unwind(AssertUnwindSafe(body));
            *place.lock().expect("nobody panics with it") = Some(done);
        })?;
        Ok(JoinHandle { task: TaskHandle { world, id, end }, result })
    }
}

/// # Panics
///
/// No thread is to be had.
pub fn spawn<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    Builder::new().spawn(body).expect("failed to spawn thread")
}

pub struct JoinHandle<T> {
    task: TaskHandle,
    result: Arc<Mutex<Option<Result<T>>>>,
}

impl<T> JoinHandle<T> {
    /// # Errors
    ///
    /// The thread panicked.
    #[track_caller]
    pub fn join(self) -> Result<T> {
        world::wait(What::Join, &[self.task.end], None, || self.task.has_ended().then_some(()));
        self.result.lock().expect("nobody panics with it").take().expect("an ended thread has a result")
    }

    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.task.has_ended()
    }

    #[must_use]
    pub fn thread(&self) -> Thread {
        Thread(self.task.clone())
    }
}

#[derive(Clone)]
pub struct Thread(TaskHandle);

impl Thread {
    pub fn unpark(&self) {
        self.0.unpark();
    }

    #[must_use]
    pub fn name(&self) -> Option<String> {
        Some(self.0.name())
    }
}

#[must_use]
pub fn current() -> Thread {
    Thread(TaskHandle::current())
}

#[track_caller]
pub fn park() {
    TaskHandle::current().park(None);
}

#[track_caller]
pub fn park_timeout(at_most: Duration) {
    let deadline = world::current().now().checked_add(at_most);
    TaskHandle::current().park(deadline);
}

#[track_caller]
pub fn sleep(time: Duration) {
    let deadline = world::current().now().checked_add(time);
    world::wait(What::Sleep, &[], deadline, || None::<()>);
}

pub fn yield_now() {
    world::yield_now();
}
