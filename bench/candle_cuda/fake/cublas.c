#include <stdlib.h>
int cublasCreate_v2(void** h) { return *h = malloc(8), 0; }
