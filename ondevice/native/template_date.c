/* Dates in chat templates: strftime in the C locale, for the directives that templates use. */
#include "template.h"

static const char *const DAYS[7] = {"Sunday", "Monday", "Tuesday", "Wednesday", "Thursday",
                                    "Friday", "Saturday"};
static const char *const MONTHS[12] = {"January", "February", "March", "April", "May", "June",
                                       "July", "August", "September", "October", "November",
                                       "December"};

typedef struct moment {
    int64_t year;
    int32_t month, day;     /* from 0, from 1 */
    int32_t weekday;        /* from Sunday */
    int32_t day_of_year;    /* from 1 */
    int32_t second_of_day;
} moment;

/* The proleptic Gregorian calendar by eras of 400 years that start in March. */
static moment moment_of(int64_t seconds) {
    const int64_t day_seconds = 86400;
    int64_t days = seconds / day_seconds;
    int32_t second = (int32_t)(seconds % day_seconds);
    if (second < 0) {
        second += (int32_t)day_seconds;
        days--;
    }
    int64_t shifted = days + 719468;
    int64_t era = (shifted >= 0 ? shifted : shifted - 146096) / 146097;
    int32_t of_era = (int32_t)(shifted - era * 146097);
    int32_t year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    int32_t of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    int32_t month = (5 * of_year + 2) / 153; /* from March */
    moment m = {.second_of_day = second, .weekday = (int32_t)(((days + 4) % 7 + 7) % 7)};
    m.day = of_year - (153 * month + 2) / 5 + 1;
    m.month = (month + 2) % 12;
    m.year = year_of_era + era * 400 + (month >= 10 ? 1 : 0);
    bool leap = (m.year % 4 == 0 && m.year % 100 != 0) || m.year % 400 == 0;
    m.day_of_year = month >= 10 ? of_year - 305 : of_year + (leap ? 60 : 59) + 1;
    return m;
}

static void put(od_prompt *prompt, char character) {
    if (prompt->bytes < prompt->capacity) prompt->text[prompt->bytes] = character;
    prompt->bytes++;
}

static void put_name(od_prompt *prompt, const char *name, int32_t letters) {
    for (int32_t i = 0; name[i] != '\0' && i < letters; i++) put(prompt, name[i]);
}

static void put_number(od_prompt *prompt, int64_t value, int32_t digits) {
    int64_t unit = 1;
    for (; digits > 1; digits--) unit *= 10;
    for (; unit > 0; unit /= 10) put(prompt, (char)('0' + value / unit % 10));
}

static void put_directive(od_prompt *prompt, const moment *m, char directive) {
    switch (directive) {
        case 'a': put_name(prompt, DAYS[m->weekday], 3); break;
        case 'A': put_name(prompt, DAYS[m->weekday], 99); break;
        case 'b': put_name(prompt, MONTHS[m->month], 3); break;
        case 'B': put_name(prompt, MONTHS[m->month], 99); break;
        case 'd': put_number(prompt, m->day, 2); break;
        case 'H': put_number(prompt, m->second_of_day / 3600, 2); break;
        case 'j': put_number(prompt, m->day_of_year, 3); break;
        case 'm': put_number(prompt, m->month + 1, 2); break;
        case 'M': put_number(prompt, m->second_of_day / 60 % 60, 2); break;
        case 'S': put_number(prompt, m->second_of_day % 60, 2); break;
        case 'y': put_number(prompt, m->year % 100, 2); break;
        case 'Y': put_number(prompt, m->year, 4); break;
        default: put(prompt, directive); break;
    }
}

void od_write_date(od_prompt *prompt, const uint8_t *form, size_t bytes) {
    const int64_t century = 100LL * 366 * 86400; /* times beyond 50 centuries are held at them */
    int64_t time = prompt->local_time;
    if (time > 50 * century) time = 50 * century;
    if (time < -19 * century) time = -19 * century;
    moment m = moment_of(time);
    for (size_t i = 0; i < bytes; i++) {
        if (form[i] == '%' && i + 1 < bytes) put_directive(prompt, &m, (char)form[++i]);
        else put(prompt, (char)form[i]);
    }
}
