/* A FAKE of NVIDIA's run-time compiler: it tells a version and compiles nothing. For tests of the questions that are asked
 * before a GPU is touched. */
int nvrtcVersion(int *major, int *minor) {
    *major = 12;
    *minor = 4;
    return 0;
}
