@echo off
rem Compare two recordings and write the report:
rem     scripts\compare_outputs.bat --reference outputs/nemo --candidate outputs/nest --out outputs/report
rem Runs in .venv\nest, or on the Python that NEST_PYTHON names; from any folder.
setlocal
for %%I in ("%~dp0..") do set "root=%%~fI"
set "python=%root%\.venv\nest\Scripts\python.exe"
if defined NEST_PYTHON set "python=%NEST_PYTHON%"
where /q "%python%" 2> nul || if not exist "%python%" (
    echo error: no Python for this: "%python%". Run python scripts\setup.py in "%root%", or set NEST_PYTHON 1>&2
    exit /b 3
)
set "PYTHONPATH="
set "PYTHONHOME="
if not defined OMP_NUM_THREADS set "OMP_NUM_THREADS=1"
"%python%" "%root%\scripts\compare_outputs.py" %*
exit /b %ERRORLEVEL%
