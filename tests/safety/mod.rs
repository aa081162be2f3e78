//! Nothing is lost, and nothing is replaced by mistake: kills, interrupts, full disks, runs that
//! diverge, outputs that exist, two runs at once.

mod again;
mod any_moment;
mod cut_short;
mod divergence;
mod interrupted;
mod online;
mod ownership;
mod replaced;
#[cfg(unix)]
mod written;
