//! C programs that check floating point, memory, threads, signals and the rest from the inside:
//! each prints what it verified, natively and under `mosrun`.

use skein_tests::cases;
use skein_tests::guest::{Linking, program};
use skein_tests::home::{self, Home, Host};
use skein_tests::run::run;
use std::ffi::OsString;

cases! {
    registers_hold_across_signals: program("fpu", Linking::Dynamic, []);
    registers_hold_across_signals_in_a_static_program: program("fpu", Linking::Static, []);
    fork_copies_on_write: program("cow", Linking::Dynamic, []);
    fork_copies_on_write_in_a_static_program: program("cow", Linking::Static, []);
    memory_is_what_the_calls_made_it: program("memory", Linking::Dynamic, []);
    memory_is_what_the_calls_made_it_in_a_static_program: program("memory", Linking::Static, []);
    stacks_grow_and_overflow_into_a_handler: program("stack", Linking::Dynamic, []);
    stacks_grow_and_overflow_in_a_static_program: program("stack", Linking::Static, []);
    two_hundred_threads_work_together: program("threads", Linking::Dynamic, []);
    two_hundred_threads_in_a_static_program: program("threads", Linking::Static, []);
    programs_start_programs: program("vfork", Linking::Dynamic, []).status(21);
    a_static_program_starts_programs: program("vfork", Linking::Static, []).status(21);
    shared_mappings_are_one_memory: program("shared", Linking::Dynamic, []);
    shared_mappings_of_a_static_program_are_one_memory: program("shared", Linking::Static, []);
    system_v_memory_semaphores_and_queues_work: program("sysv", Linking::Dynamic, []);
    system_v_in_a_static_program: program("sysv", Linking::Static, []);
    less_usual_descriptors_work: program("descriptors", Linking::Dynamic, []);
    signals_arrive_as_they_should: program("signals", Linking::Dynamic, []);
    signals_arrive_in_a_static_program: program("signals", Linking::Static, []);
    signals_reach_the_right_thread: program("whom", Linking::Dynamic, []);
    signals_reach_the_right_thread_of_a_static_program: program("whom", Linking::Static, []);
    clocks_agree_and_never_go_back: program("clock", Linking::Dynamic, []);
    clocks_agree_in_a_static_program: program("clock", Linking::Static, []);
    the_less_usual_calls_work: program("corners", Linking::Dynamic, []);
    the_less_usual_calls_work_in_a_static_program: program("corners", Linking::Static, []);
    what_is_forbidden_faults_as_natively: program("stealth", Linking::Dynamic, []);
    what_is_forbidden_faults_in_a_static_program: program("stealth", Linking::Static, []);
    no_thread_uses_a_page_that_is_unmapped: program("shootdown", Linking::Dynamic, []);
    no_thread_of_a_static_program_uses_a_page_that_is_unmapped: program("shootdown", Linking::Static, []);
    files_are_read_and_written_as_if_at_home: program("files", Linking::Dynamic, []);
    files_are_read_and_written_by_a_static_program: program("files", Linking::Static, []);
    many_calls_are_as_each_by_itself: program("exitless", Linking::Dynamic, []);
    many_calls_of_a_static_program_are_as_each_by_itself: program("exitless", Linking::Static, []);
    ids_are_those_of_who_asks: program("identity", Linking::Dynamic, []);
    cpus_are_those_by_right: program("near", Linking::Dynamic, []);
    ids_are_those_of_who_asks_with_the_base_of_another: program("bases", Linking::Dynamic, []);
    ids_are_those_of_who_asks_in_a_static_program: program("identity", Linking::Static, []);
    what_was_used_is_accounted: program("usage", Linking::Dynamic, []);
    every_table_has_an_end: program("limits", Linking::Dynamic, []);
    memory_handed_out_is_zero: program("recycle", Linking::Dynamic, []);
    memory_handed_out_to_a_static_program_is_zero: program("recycle", Linking::Static, []);
}

/// In a node of its own: it takes almost all the threads that a node has.
#[test]
fn much_of_one_thing_is_served() {
    if matches!(home::shared(), Home::Absent) {
        eprintln!("much_of_one_thing_is_served: not run under mosrun: there is no /dev/kvm here");
        return;
    }
    let host = Host::start().unwrap_or_else(|why| panic!("{why}"));
    for linking in [Linking::Dynamic, Linking::Static] {
        let case = program("extremes", linking, []);
        let place = tempfile::tempdir().expect("a temporary directory");
        let said = |runner: &[OsString]| {
            let environment = [("SKEIN_DIR".into(), host.directory().into_os_string())];
            let outcome =
                run(&case, place.path(), runner, &environment).unwrap_or_else(|failure| panic!("{failure:?}"));
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            assert_eq!(outcome.ending, case.ending, "{runner:?}: {}", text(&outcome.stderr));
            text(&outcome.stdout)
        };
        assert_eq!(said(&[host.command_path("mosrun").into()]), said(&[]), "{linking:?}");
    }
    host.stop();
}
