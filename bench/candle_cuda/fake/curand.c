#include <math.h>
#include <stdint.h>
#include <stdlib.h>
static uint64_t state = 88172645463325252ULL;
static double next(void) { state ^= state << 13, state ^= state >> 7, state ^= state << 17; return ((state >> 11) + 0.5) / 9007199254740992.0; }
int curandCreateGenerator(void** g, int t) { return *g = malloc(8), 0; }
int curandGenerateUniform(void* g, float* p, size_t n) { for (size_t i = 0; i < n; ++i) p[i] = next(); return 0; }
int curandGenerateNormal(void* g, float* p, size_t n, float m, float s) {
    if (n % 2) return 105;
    for (size_t i = 0; i < n; ++i) p[i] = m + s * sqrt(-2 * log(next())) * cos(6.283185307179586 * next());
    return 0;
}
