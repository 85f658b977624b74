#include "profile.h"

#include "engine.h"

typedef struct lane { /* of a worker; lines of its own */
    _Alignas(64) int64_t event_count; /* since the start, also those no longer kept */
    od_profile_row *rows;             /* [launches]; times still in ticks */
    od_run *kept;                     /* run n lies at n % most */
} lane;

struct od_profile {
    size_t bytes;
    int32_t workers;
    int32_t launches;
    int32_t most;
    int64_t start_ns;
    int64_t start_ticks;
    lane lanes[OD_MAX_THREADS];
};

static size_t lines(int32_t count, size_t each) { return ((size_t)count * each + 63) / 64 * 64; }

od_profile *od_profile_open(int32_t workers, int32_t launches, int32_t events) {
    size_t rows = lines(launches, sizeof(od_profile_row));
    size_t kept = lines(events, sizeof(od_run));
    size_t bytes = sizeof(od_profile) + (size_t)workers * (rows + kept);
    od_profile *profile = od_reserve(bytes);
    if (profile == NULL) return NULL;
    uint8_t *start = (uint8_t *)(profile + 1);
    profile->bytes = bytes;
    profile->workers = workers;
    profile->launches = launches;
    profile->most = events;
    profile->start_ns = od_now_ns();
    profile->start_ticks = od_ticks();
    for (int32_t i = 0; i < workers; i++) {
        profile->lanes[i].rows = (void *)(start + (size_t)i * (rows + kept));
        profile->lanes[i].kept = (void *)(start + (size_t)i * (rows + kept) + rows);
    }
    return profile;
}

void od_profile_close(od_profile *profile) {
    if (profile != NULL) od_release(profile, profile->bytes);
}

void od_profile_add(od_profile *profile, const od_run *run) {
    lane *own = &profile->lanes[run->worker];
    od_profile_row *row = &own->rows[run->launch];
    row->launch = run->launch;
    row->worker = run->worker;
    row->runs += !run->stolen;
    row->chunks += run->chunks;
    row->busy_ns += run->end - run->begin;
    row->wait_ns += run->begin - run->arrived;
    if (profile->most > 0 && !run->stolen) own->kept[own->event_count++ % profile->most] = *run;
}

/* How long a tick is shows when some have passed. */
static double tick_ns(const od_profile *profile) {
    int64_t ticks = od_ticks() - profile->start_ticks;
    return ticks > 0 ? (double)(od_now_ns() - profile->start_ns) / (double)ticks : 0;
}

/* ---- the calls ---- */

/* Counters belong to the workers while a step runs, and a step runs for who generates. Its end waits
 * for nobody, so some may still be on their way out of it. */
static od_status enter_at_rest(od_engine handle, od_core **engine, od_error *error) {
    od_status status = od_enter_engine(handle, engine, error);
    if (status != OD_OK) return status;
    for (int32_t i = 0; i < (*engine)->capacity; i++)
        if ((*engine)->states[i].active)
            return od_leave(*engine, od_fail(error, OD_BUSY, "a conversation is generating; read "
                                             "to the end or cancel first"));
    od_threads_settle((*engine)->threads);
    return OD_OK;
}

static od_status enter_profile(od_engine handle, od_core **engine, od_error *error) {
    od_status status = enter_at_rest(handle, engine, error);
    if (status != OD_OK || (*engine)->profile != NULL) return status;
    return od_leave(*engine, od_fail(error, OD_INVALID, "no profile has been started"));
}

static void use(od_core *engine, od_profile *profile) {
    od_profile *before = engine->profile;
    engine->profile = profile;
    od_threads_profile(engine->threads, profile); /* from here on no late worker counts in `before` */
    od_profile_close(before);
}

od_status od_profile_start(od_engine handle, int32_t events, od_error *error) {
    od_core *engine = NULL;
    if (events < 0) return od_fail(error, OD_INVALID, "events = %d is negative", events);
    od_status status = enter_at_rest(handle, &engine, error);
    if (status != OD_OK) return status;
    int32_t launches = engine->model->launch_count + 1;
    od_profile *profile = od_profile_open(engine->thread_count, launches, events);
    if (profile == NULL)
        return od_leave(engine, od_fail(error, OD_MEMORY, "cannot reserve a profile of %d events "
                                        "for each of %d threads", events, engine->thread_count));
    use(engine, profile);
    return od_leave(engine, OD_OK);
}

od_status od_profile_stop(od_engine handle, od_error *error) {
    od_core *engine = NULL;
    od_status status = enter_at_rest(handle, &engine, error);
    if (status != OD_OK) return status;
    use(engine, NULL);
    return od_leave(engine, OD_OK);
}

od_status od_profile_read(od_engine handle, od_profile_row *rows, int64_t capacity, int64_t *count,
                          od_error *error) {
    od_core *engine = NULL;
    od_status status = enter_profile(handle, &engine, error);
    if (status != OD_OK) return status;
    const od_profile *profile = engine->profile;
    double unit = tick_ns(profile);
    *count = 0;
    for (int32_t i = 0; i < profile->launches; i++) {
        for (int32_t worker = 0; worker < profile->workers; worker++) {
            const od_profile_row *row = &profile->lanes[worker].rows[i];
            if (row->runs == 0) continue;
            if (*count < capacity) {
                rows[*count] = *row;
                rows[*count].busy_ns = (int64_t)((double)row->busy_ns * unit);
                rows[*count].wait_ns = (int64_t)((double)row->wait_ns * unit);
            }
            ++*count;
        }
    }
    return od_leave(engine, OD_OK);
}

static od_profile_event event_of(const od_profile *profile, const od_run *run, double unit) {
    int64_t start = profile->start_ticks, start_ns = profile->start_ns;
    return (od_profile_event){
        .launch = run->launch,
        .worker = run->worker,
        .chunks = run->chunks,
        .arrived_ns = start_ns + (int64_t)((double)(run->arrived - start) * unit),
        .begin_ns = start_ns + (int64_t)((double)(run->begin - start) * unit),
        .end_ns = start_ns + (int64_t)((double)(run->end - start) * unit),
    };
}

od_status od_profile_events(od_engine handle, od_profile_event *events, int64_t capacity,
                            int64_t *count, od_error *error) {
    od_core *engine = NULL;
    od_status status = enter_profile(handle, &engine, error);
    if (status != OD_OK) return status;
    const od_profile *profile = engine->profile;
    double unit = tick_ns(profile);
    *count = 0;
    for (int32_t worker = 0; worker < profile->workers; worker++) {
        const lane *own = &profile->lanes[worker];
        int64_t first = own->event_count > profile->most ? own->event_count - profile->most : 0;
        for (int64_t n = first; n < own->event_count; n++, ++*count)
            if (*count < capacity)
                events[*count] = event_of(profile, &own->kept[n % profile->most], unit);
    }
    return od_leave(engine, OD_OK);
}
