/* exp, cos and sin in double, to about one unit in the last place. libm differs from one system to
 * the next; these give the same bits everywhere (built without contraction). */
#ifndef OD_ELEMENTARY_H
#define OD_ELEMENTARY_H

double od_exp(double x); /* 0 below -708; x at most 709 */
void od_cos_sin(double x, double *cos, double *sin); /* |x| < 2^27 */

#endif
