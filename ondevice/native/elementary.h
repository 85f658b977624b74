/* exp, log, cos and sin in double, to about one unit in the last place. libm differs from one
 * system to the next; these give the same bits everywhere (built without contraction). */
#ifndef OD_ELEMENTARY_H
#define OD_ELEMENTARY_H

#include <stdint.h>

double od_exp(double x); /* 0 below -708; x at most 709 */
void od_exp_row(double *values, int32_t count); /* the same of each, in place */
double od_log(double x); /* x a normal number above 0 */
void od_cos_sin(double x, double *cos, double *sin); /* |x| < 2^27 */

#endif
